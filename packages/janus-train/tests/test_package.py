"""What the package promises as a whole."""

import re
import subprocess
import sys
from pathlib import Path

import janus_train
import janus_train.benchmarking
import janus_train.testing


def test_every_public_name_is_there_and_those_of_the_package_are_in_the_readme():
    for module in (janus_train, janus_train.testing, janus_train.benchmarking):
        assert len(set(module.__all__)) == len(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)
    readme = Path(__file__).parents[1].joinpath("README.md").read_text()
    named = set(re.findall(r"\w+", " ".join(re.findall(r"^\|.*$", readme, re.MULTILINE))))
    assert set(janus_train.__all__) - {"Config"} <= named


def modules_after(program: str) -> set[str]:
    """What a fresh process has imported."""
    program = f"import sys\nbefore = set(sys.modules)\n{program}\nprint(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_takes_no_longer_than_that_of_torch_heavy_things_are_imported_where_they_are_used():
    """A time would be that of this machine, which `benchmarks/import_time.py` measures. What costs time is imports."""
    outside = {name.partition(".")[0] for name in modules_after("import janus_train")} - set(sys.stdlib_module_names)
    assert outside == {"janus_train"}
    slow = set("ase.io ase.optimize h5py lmdb matcalc matplotlib numba pandas phonopy pymatgen rich scipy tensorboard "
               "torch.distributed.checkpoint torch._dynamo typer wandb".split())  # fmt: skip
    assert not modules_after("from janus_train import Recipe, ReplicatedStep, train") & slow
