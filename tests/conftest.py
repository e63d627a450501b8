import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

# Small enough that a step takes milliseconds; every part of the model is there.
TINY = [
    "model.blocks=2", "model.width=16", "model.edge_width=8", "model.heads=2", "model.experts=4",
    "model.expert_hidden=8", "model.message_hidden=8", "model.feature_hidden=8", "model.structure_width=4",
    "model.cutoff=4.0", "model.near_cutoff=3.0", "data.batch_edges=600", "optim.warmup_steps=2", "run.log_every=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def plain_torch_state():
    """Runs may ask for deterministic algorithms; the next test starts without."""
    yield
    torch.use_deterministic_algorithms(False)


def labelled_structures(count: int, seed: int) -> list[Atoms]:
    """Random clusters and crystals with Lennard-Jones labels; every third frame lacks a stress."""
    rng = np.random.default_rng(seed)
    frames = []
    for number in range(count):
        periodic = number % 2 == 0
        numbers = rng.choice([8, 14], size=int(rng.integers(2, 7)))
        grid = np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)])[: len(numbers)]
        atoms = Atoms(numbers, positions=grid * 2.6 + rng.normal(0, 0.15, (len(numbers), 3)), pbc=periodic,
                      cell=np.eye(3) * 5.4 + rng.normal(0, 0.1, (3, 3)) if periodic else None)  # fmt: skip
        atoms.calc = LennardJones(sigma=2.3, epsilon=0.3, rc=5.0, smooth=True)
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if periodic and number % 3:
            labels["stress"] = atoms.get_stress()
        atoms.info = {"charge": 0, "spin": 1, "task": "lj", "split": "val" if number % 5 == 0 else "train"}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    return frames


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "lj.extxyz"
    write(path, labelled_structures(40, seed=0), format="extxyz")
    return path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Runs a command line in this process, in an empty directory; gives exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from janus_train.cli import main

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["janus-train", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def torchrun(ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a command line on several ranks, each a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone", "-m",
         "janus_train", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def metrics(directory: Path, kind: str) -> list[dict]:
    """Lines of one kind of a run's metrics.jsonl."""
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]
