"""What the package promises as a whole."""

import re
import subprocess
import sys
from pathlib import Path

import janus_graph
import janus_graph.testing

README = Path(__file__).parents[1] / "README.md"


def test_every_public_name_is_there_and_in_the_readme():
    text = README.read_text(encoding="utf-8")
    for package in (janus_graph, janus_graph.testing):
        assert all(hasattr(package, name) for name in package.__all__)
        assert [name for name in package.__all__ if f"`{name}" not in text] == []


def test_import_brings_in_neither_ase_nor_other_packages_of_the_workspace_nor_test_tools():
    program = (
        "import sys, janus_graph, janus_graph.testing, janus_graph.lennard_jones\n"
        "known = ('ase', 'hypothesis', 'pytest', 'janus_comm', 'janus_moe', 'janus_train', 'matris_model')\n"
        "print([name for name in known if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_examples_of_the_readme_run():
    examples = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert examples
    subprocess.run([sys.executable, "-c", "\n".join(examples)], check=True)
