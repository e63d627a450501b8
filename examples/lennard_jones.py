"""Trains somebody's own potential with the whole trainer: a Lennard-Jones model on labels of another one.

Whatever turns a graph into `Properties` can stand where `LennardJones` stands; nothing here knows MatRIS-MoE.
"""

from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.lj import LennardJones as Reference
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from janus_graph.lennard_jones import LennardJones
from janus_train import Recipe, load_config, train


def labelled_clusters(count: int) -> list[Atoms]:
    rng = np.random.default_rng(0)
    corners = 3.8 * np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)])
    frames = []
    for _ in range(count):
        atoms = Atoms("Ar8", positions=corners + rng.normal(0, 0.2, corners.shape))
        atoms.calc = Reference(epsilon=0.0104, sigma=3.40, rc=9.0, smooth=True)
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    return frames


def recipe(config, data, statistics, seed) -> Recipe:
    model = LennardJones(epsilon=0.02, sigma=3.2, cutoff=9.0)
    return Recipe(model, model.cutoff, model.near_cutoff, save, load)


def save(model, directory, about) -> None:
    torch.save(model.state_dict(), directory / "argon.pt")


def load(directory) -> LennardJones:
    model = LennardJones(epsilon=0.02, sigma=3.2, cutoff=9.0)
    model.load_state_dict(torch.load(directory / "argon.pt", weights_only=True))
    return model


def main() -> None:
    write("argon.extxyz", labelled_clusters(60), format="extxyz")
    settings = [
        "data.train=argon.extxyz", "run.dir=argon", "run.max_steps=200", "run.dtype=float64", "optim.lr=0.02",
        "loss.stress=0", "data.batch_edges=500", "optim.warmup_steps=1",
    ]  # fmt: skip
    trained = load(train(load_config(None, settings), recipe))
    print(f"ε = {1000 * trained.epsilon.item():.2f} meV, σ = {trained.sigma.item():.3f} Å", Path("argon/report.html"))


if __name__ == "__main__":
    main()
