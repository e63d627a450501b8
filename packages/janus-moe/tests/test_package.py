"""What the package promises as a whole."""

import re
import subprocess
import sys
from pathlib import Path

import janus_moe


def test_every_public_name_is_there():
    assert len(set(janus_moe.__all__)) == len(janus_moe.__all__)
    assert all(hasattr(janus_moe, name) for name in janus_moe.__all__)


def test_import_brings_in_no_other_package_of_the_workspace():
    program = (
        "import sys, janus_moe, janus_moe.testing\n"
        "known = ('janus_comm', 'janus_graph', 'janus_train', 'matris_model', 'ase', 'vesin', 'hypothesis', 'pytest',\n"
        "         'triton', 'numba')\n"
        "print([name for name in known if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_example_of_the_readme_runs():
    readme = Path(__file__).parents[1].joinpath("README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    subprocess.run([sys.executable, "-c", example], check=True)
