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


def run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_only_the_bridge_to_ase_needs_ase():
    program = (
        "import sys\n"
        "sys.modules['ase'] = None  # as if it were not installed\n"
        "import janus_graph\n"
        "from janus_graph.lennard_jones import LennardJones\n"
        "from janus_graph.testing import check_conservative, check_neighbor_list, sample_structures\n"
        "check_neighbor_list(janus_graph.neighbor_list)\n"
        "check_conservative(LennardJones(0.2, 1.4, 3.0), [sample_structures()['molecule']], 3.0, 1.5)\n"
        "unwanted = ('janus_graph.ase', 'hypothesis', 'pytest', 'janus_comm', 'janus_moe', 'janus_train')\n"
        "print([name for name in unwanted if name in sys.modules])\n"
    )
    assert run(program) == "[]"


def test_the_examples_of_the_readme_run():
    examples = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert examples
    run("\n".join(examples))
