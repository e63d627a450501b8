"""What every kind of structure is made of: groups that are drawn, and the ways atoms are displaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from ase import Atoms
from numpy.random import Generator, SeedSequence, default_rng

SEED = 20260101
POSITION_DECIMALS = 6


@dataclass(frozen=True)
class Group:
    """Frames that resemble each other and so belong to one split.

    `base` draws what they share (composition, cell, a common distortion); `frame` draws one frame from it.
    Charge and multiplicity travel in `Atoms.info["charge"]` and `Atoms.info["spin"]`.
    """

    name: str
    base: Callable[[Generator], Atoms]
    frame: Callable[[Atoms, Generator], Atoms]
    frames: int = 2
    reference: bool = False  # free atoms: always in the training split


def generator(task: str, group: str, item: int) -> Generator:
    """The random numbers of one item of one group, whatever else is drawn before, after or not at all."""
    key = (crc32(task.encode()), crc32(group.encode()), item)
    return default_rng(SeedSequence(SEED, spawn_key=key))


def draw(task: str, group: Group) -> list[Atoms]:
    """The frames of a group, their numbers rounded as the file will hold them, without labels."""
    base = group.base(generator(task, group.name, 0))
    return [round_structure(group.frame(base, generator(task, group.name, k + 1))) for k in range(group.frames)]


def round_structure(atoms: Atoms) -> Atoms:
    """A copy whose positions and cell are exactly what is read back from their decimal form."""
    rounded = atoms.copy()
    rounded.set_cell(_through_decimals(atoms.cell.array))
    rounded.set_positions(_through_decimals(atoms.positions))
    return rounded


def _through_decimals(values: np.ndarray) -> np.ndarray:
    texts = [f"{value:.{POSITION_DECIMALS}f}" for value in values.ravel()]
    return np.array([float(text) + 0.0 for text in texts]).reshape(values.shape)


def with_state(atoms: Atoms, charge: int = 0, spin: int = 1) -> Atoms:
    """A bare copy (species, positions, cell) that carries a total charge and a multiplicity."""
    bare = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    bare.info.update(charge=charge, spin=spin)
    return bare


def displaced(atoms: Atoms, rng: Generator, deviation: float) -> Atoms:
    """Every coordinate moved by a normal variate of this standard deviation (Å)."""
    moved = atoms.copy()
    moved.positions += rng.normal(0.0, deviation, (len(atoms), 3))
    return moved


def strained(atoms: Atoms, rng: Generator, volume: tuple[float, float], shear: float, dims: int = 3) -> Atoms:
    """Atoms and cell scaled to a random volume (change in percent drawn from a range) under a random symmetric strain."""
    strain = rng.normal(0.0, shear, (3, 3))
    strain = 0.5 * (strain + strain.T)
    np.fill_diagonal(strain, strain.diagonal() - np.trace(strain) / 3)
    deformation = np.eye(3) * (1 + rng.uniform(*volume) / 100) ** (1 / 3) + strain
    if dims == 2:
        deformation[2, :2] = deformation[:2, 2] = 0.0
        deformation[2, 2] = 1.0
    deformed = atoms.copy()
    deformed.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    return deformed


def rotated(positions: np.ndarray, rng: Generator) -> np.ndarray:
    """Positions about their centre, turned by a rotation drawn uniformly (from a random unit quaternion)."""
    w, x, y, z = (lambda q: q / np.sqrt((q * q).sum()))(rng.normal(size=4))
    matrix = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    return (positions - positions.mean(axis=0)) @ matrix.T
