"""The documentation tells the truth: its code runs, its links lead somewhere, its tables are those of the code."""

import ast
import re
import shlex
import textwrap
from pathlib import Path

import pytest
from generate import filled
from site_pages import ELSEWHERE, with_links_of_site

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
    if page == ROOT / "README.md":
        run_commands_of_the_way_to_a_relaxation(page.read_text())
    namespace: dict[str, object] = {"__name__": "documentation"}
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)
    assert "```python" not in page.read_text() or blocks


def run_commands_of_the_way_to_a_relaxation(readme: str) -> None:
    """What the README tells a stranger to do with a file of theirs, in few steps."""
    from ase.build import bulk
    from ase.calculators.emt import EMT
    from ase.io import write
    from typer.testing import CliRunner

    from janus_train.cli import app

    frames = []
    for seed in range(8):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=seed)
        atoms.calc = EMT()
        atoms.get_forces()
        atoms.calc.results = {name: atoms.calc.results[name] for name in ("energy", "forces")}
        frames.append(atoms)
    write("mine.extxyz", frames)
    section = readme[readme.index("## From a calculation") : readme.index("## Use the model")]
    commands = re.findall(r"^uv run janus-train (.*)$", section, flags=re.MULTILINE)
    code = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    assert len(commands) == 2
    assert len(commands) + sum(len(list(filter(None, block.splitlines()))) for block in code) < 10
    for command in commands:
        few = [] if command.startswith("check-data") else ["run.max_steps=2", "optim.warmup_steps=1"]
        arguments = [word for word in command.split() if not word.startswith("run.max_steps")]
        found = CliRunner().invoke(app, [*arguments, *few], catch_exceptions=False)
        assert found.exit_code == 0, found.output


def commands_in(page: Path) -> list[list[str]]:
    """Words of each command line with janus-train on a page."""
    text = page.read_text()
    blocks = re.findall(r"^ *```(?:sh|bash|)\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"(?:^ {4}.*\n)+", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL), re.M)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.split(r"janus-train |-m janus_train ", line.strip(), maxsplit=1) for line in lines]
    starts = re.compile(r"(uv run |pip install uv && uv run |srun |torchrun |uv run torchrun ).*|")
    told = [shlex.split(after[0], comments=True) for before, *after in found if after and starts.fullmatch(before)]
    return [words for words in told if "…" not in words and words[0].replace("-", "").isalpha()]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_ones_that_the_program_takes(page: Path):
    from typer.main import get_command

    from janus_train.cli import app
    from janus_train.config import load_config

    for words in commands_in(page):
        command = get_command(app)
        context = None
        while hasattr(command, "commands") and words and not words[0].startswith("-"):
            assert words[0] in command.commands, f"{name(page)}: no command {words}"
            command, words = command.commands[words[0]], words[1:]
        context = command.make_context("janus-train", list(words), resilient_parsing="--help" in words)
        settings = [re.sub(r"\$\w+", "1", word) for word in words if re.fullmatch(r"[a-z_]+(\.\w+)+=.*", word)]
        assert context.params or "--help" in words or not words
        load_config(None, settings)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_configurations_are_ones_that_the_program_takes(page: Path, tmp_path: Path):
    from janus_train.config import load_config

    for block in re.findall(r"^ *```yaml\n(.*?)^ *```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
        (tmp_path / "my.yaml").write_text(textwrap.dedent(block))
        load_config(tmp_path / "my.yaml")


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_examples_run(example: Path, elsewhere: Path):
    namespace: dict[str, object] = {"__name__": "__main__"}
    exec(compile(example.read_text(), str(example), "exec"), namespace)
    assert namespace["main"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_somewhere(page: Path):
    prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{name(page)} links to {target}"


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")), ids=name)
def test_generated_tables_are_fresh(page: Path):
    assert filled(page.read_text()) == page.read_text(), "run: python docs/generate.py"


def texts_of_packages() -> list[str]:
    """Every string that the packages could say, f-strings in their constant parts."""
    trees = [ast.parse(path.read_text()) for path in ROOT.glob("packages/*/src/**/*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [node.value for node in nodes if isinstance(node.value, str)]


def test_messages_that_the_documentation_explains_are_those_of_the_code():
    messages = re.findall(r"^### `(.*)`$", (ROOT / "docs/errors.md").read_text(), flags=re.MULTILINE)
    assert messages
    everything = texts_of_packages()
    for message in messages:
        for part in filter(str.strip, message.split("…")):
            assert any(part.strip() in text for text in everything), f"nothing says '{part}' of '{message}'"


def test_every_promise_has_the_test_that_it_names():
    rows = (ROOT / "docs/trust.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", rows))
    files = [*ROOT.glob("packages/*/tests/*.py"), *ROOT.glob("tests/*.py")]
    assert len(named) >= 15
    assert named <= set(re.findall(r"^def (test_\w+)", "\n".join(path.read_text() for path in files), re.MULTILINE))


def test_every_page_is_on_the_site_once(tmp_path: Path):
    mkdocs = pytest.importorskip("mkdocs.config")
    from mkdocs.commands.build import build

    config = mkdocs.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"))
    build(config)  # strict: a page outside the navigation or a link that leads nowhere is an error
    pages = {path.relative_to(tmp_path / "site").with_suffix(".md") for path in (tmp_path / "site").rglob("*.html")}
    written = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").glob("*.md")}
    assert pages - {Path("404.md")} == written | {Path(target) for target in ELSEWHERE.values()}


def test_the_site_asks_no_other_server_for_anything(tmp_path: Path):
    mkdocs = pytest.importorskip("mkdocs.config")
    from mkdocs.commands.build import build

    build(mkdocs.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site")))
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(https?:[^\"]*)", page.read_text())
        assert not fetched, f"{page.name} fetches {fetched}"


@pytest.mark.parametrize(
    ("markdown", "source", "on_site"),
    [
        ("[t](training.md#steps)", "docs/using.md", "[t](training.md#steps)"),
        ("![f](docs/moe.svg)", "README.md", "![f](moe.svg)"),
        ("[c](packages/janus-comm)", "README.md", "[c](packages/janus-comm.md)"),
        ("[s](../../docs/sharding.md)", "packages/janus-comm/README.md", "[s](../sharding.md)"),
        ("[e](../examples/own_loop.py)", "docs/using.md", "e"),
        ("```python\nlayers[0](rows)\n```", "docs/parts.md", "```python\nlayers[0](rows)\n```"),
        ("[p](https://arxiv.org/abs/2604.15821)", "README.md", "[p](https://arxiv.org/abs/2604.15821)"),
    ],
)
def test_links_lead_to_the_same_page_on_the_site(markdown: str, source: str, on_site: str):
    target = ELSEWHERE.get(source, source.removeprefix("docs/"))
    assert with_links_of_site(markdown, source, target) == on_site
