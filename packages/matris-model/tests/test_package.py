"""What the package promises as a whole."""

import re
import subprocess
import sys
from pathlib import Path

import matris_model


def test_every_public_name_is_there():
    assert len(set(matris_model.__all__)) == len(matris_model.__all__)
    assert all(hasattr(matris_model, name) for name in matris_model.__all__)
    assert not hasattr(matris_model, "NoSuchName")


def output_of(program, **options):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, **options).stdout


def test_the_import_asks_for_neither_ase_nor_a_communicator():
    # The neighbour-list library looks for ASE itself, so its calculators stand for ASE here.
    program = (
        "import sys, matris_model, matris_model.testing\n"
        "known = ('ase.calculators.calculator', 'matris_model.calculator', 'janus_graph.ase', 'janus_comm',\n"
        "         'janus_train', 'hypothesis', 'pytest', 'triton')\n"
        "print([name for name in known if name in sys.modules])"
    )
    assert output_of(program).strip() == "[]"


def test_everything_but_the_calculator_works_without_ase(tmp_path):
    program = (
        "import sys; sys.modules['ase'] = None\n"
        "from matris_model import MatRISMoE, load_model, save_model\n"
        "from matris_model.testing import check_potential\n"
        "save_model(MatRISMoE.from_preset('nano', elements=(1,)), 'here')\n"
        "model = load_model('here')\n"
        "try: model.check_elements([8])\n"
        "except ValueError as error: print(error)\n"
        "try: from matris_model import MatRISCalculator\n"
        "except ImportError as error: print(error)"
    )
    elements, calculator = output_of(program, cwd=tmp_path).splitlines()
    assert "not seen O in training; it knows H" in elements
    assert "ase" in calculator


def test_the_examples_of_the_readme_run(tmp_path):
    readme = Path(__file__).parents[1].joinpath("README.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(examples) == 2
    output_of("\n".join(examples), cwd=tmp_path)
    assert (tmp_path / "my-model" / "model.json").exists()
