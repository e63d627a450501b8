"""Whole runs of the smallest model there is, on ranks that are forked as a launcher would start them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.lj import LennardJones as Reference
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from janus_graph.lennard_jones import LennardJones
from janus_train import Recipe


def write_clusters(path: Path, count: int = 12) -> None:
    """Clusters of a few atoms with energies and forces; every fourth validates."""
    rng = np.random.default_rng(0)
    corners = 3.8 * np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)])
    frames = []
    for number in range(count):
        atoms = Atoms("Ar8", positions=corners + rng.normal(0, 0.2, corners.shape))[: 3 + number % 6]
        atoms.calc = Reference(epsilon=0.0104, sigma=3.40, rc=9.0, smooth=True)
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        atoms.info["split"] = "val" if number % 4 == 3 else "train"
        frames.append(atoms)
    write(path, frames, format="extxyz")


def settings(data: Path, directory: Path, ranks: int = 1) -> list[str]:
    """Six of eight steps, with checkpoints and validations between: the end of a run takes longer than all of them."""
    return [
        f"data.train={data}", f"run.dir={directory}", "run.max_steps=8", "run.stop_at_step=6", "run.dtype=float64",
        "optim.lr=0.02", "optim.warmup_steps=1", "loss.stress=0", "data.batch_edges=60", "run.log_every=1",
        "run.checkpoint_every=2", "run.val_every=3", f"mesh.replica={ranks}", "run.timeout=30",
    ]  # fmt: skip


def recipe(
    config: Any, data: Any, statistics: Any, seed: int, before_step: Callable[[Any, int], None] = lambda model, n: None
) -> Recipe:
    """The potential, saved as text."""
    model = LennardJones(epsilon=0.02, sigma=3.2, cutoff=9.0)
    return Recipe(model, model.cutoff, model.near_cutoff, save, load, before_step)


def save(model: Any, directory: Path, about: Any) -> None:
    (directory / "argon.txt").write_text(f"{model.epsilon.item()!r} {model.sigma.item()!r}")


def load(directory: Path) -> LennardJones:
    epsilon, sigma = map(float, (directory / "argon.txt").read_text().split())
    return LennardJones(epsilon, sigma, cutoff=9.0)
