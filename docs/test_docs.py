"""The documentation tells the truth: its code runs, its links lead somewhere, its tables are those of the code."""

import re
from pathlib import Path

import pytest
from generate import filled

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("packages/*/README.md")])
EXAMPLES = sorted(ROOT.glob("examples/*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with a trained model where the documentation says that the first run leaves one."""
    from matris_model import MatRISMoE, save_model

    monkeypatch.chdir(tmp_path)
    tasks = ("ionic", "metals", "molecules", "surfaces")
    save_model(MatRISMoE.from_preset("nano", blocks=1, width=16, edge_width=8, tasks=tasks), "runs/nano-001")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_blocks_run(page: Path, elsewhere: Path):
    namespace: dict[str, object] = {"__name__": "documentation"}
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)
    assert "```python" not in page.read_text() or blocks


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_examples_run(example: Path, elsewhere: Path):
    namespace: dict[str, object] = {"__name__": "__main__"}
    exec(compile(example.read_text(), str(example), "exec"), namespace)
    assert namespace["main"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{name(page)} links to {target}"


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")), ids=name)
def test_generated_tables_are_fresh(page: Path):
    assert filled(page.read_text()) == page.read_text(), "run: python docs/generate.py"
