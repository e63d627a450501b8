"""Molecular crystals: small molecules packed at random, without overlap, into cells of a solid's density."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.data import vdw_radii
from drafts import Group, displaced, rotated, strained, with_state
from numpy.random import Generator

TASK = "molecular_crystals"

MOLECULES = "H2O NH3 CO2 CH4 HCN N2 C2H2 H2CO CH3OH SH2 HF HCl CH3Cl H2CF2 OCS SO2 HCOOH C2H4 CH3CN CF4 C2H6".split()
CELLS = 75
LARGEST = 24  # atoms
# Å^3 an atom takes in organic crystals, rounded.
VOLUMES = {"H": 5.0, "C": 14.0, "N": 12.0, "O": 11.5, "F": 11.5, "S": 25.0, "Cl": 26.0}
CONTACT = 0.78  # of the sum of van der Waals radii
IMAGES = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


def groups() -> list[Group]:
    """Cells of one kind of molecule and of two kinds in turn."""
    return [
        Group(f"{_kind(number)}/{number}", lambda rng, number=number: _packed(number, rng), _frame)
        for number in range(CELLS)
    ]


def _kind(number: int) -> str:
    name = MOLECULES[number % len(MOLECULES)]
    return name if number < len(MOLECULES) else f"{name}+other"


def _packed(number: int, rng: Generator) -> Atoms:
    first = MOLECULES[number % len(MOLECULES)]
    second = first if number < len(MOLECULES) else MOLECULES[rng.integers(len(MOLECULES))]
    chosen = [first, second]
    while len(chosen) < 5 and sum(len(molecule(name)) for name in chosen) < LARGEST - 6:
        chosen.append(chosen[rng.integers(2)])
    parts = [molecule(name) for name in chosen]
    symbols = [symbol for part in parts for symbol in part.get_chemical_symbols()]
    length = (sum(VOLUMES[symbol] for symbol in symbols) * rng.uniform(1.0, 1.25)) ** (1 / 3)
    shape = np.eye(3) + rng.uniform(-0.12, 0.12, (3, 3))
    while (packed := _placed(parts, length * shape, rng)) is None:
        length *= 1.02
    return with_state(strained(packed, rng, (-3.0, 3.0), 0.01))


def _placed(parts: list[Atoms], cell: np.ndarray, rng: Generator) -> Atoms | None:
    packed = Atoms(cell=cell, pbc=True)
    for part in parts:
        for _ in range(60):
            trial = Atoms(part.numbers, positions=rotated(part.positions, rng) + rng.uniform(size=3) @ cell)
            if _fits(trial, packed, cell):
                packed += trial
                break
        else:
            return None
    return packed


def _fits(trial: Atoms, packed: Atoms, cell: np.ndarray) -> bool:
    """Whether a molecule keeps its distance from the others, from their images and from its own images."""
    for other, skipped in ((packed, None), (trial, len(IMAGES) // 2)):
        if len(other) == 0:
            continue
        inverse = np.linalg.inv(cell)
        difference = (other.positions - trial.positions[:, None]) @ inverse
        # The images next to the nearest one in fractional coordinates are enough in cells this close to cubes.
        nearest = difference if skipped is not None else difference - np.round(difference)
        shifts = np.delete(IMAGES, skipped, axis=0) if skipped is not None else IMAGES
        vectors = (nearest[:, :, None] + shifts) @ cell
        least = CONTACT * (vdw_radii[trial.numbers][:, None] + vdw_radii[other.numbers])
        if (np.sqrt((vectors**2).sum(axis=-1)) < least[:, :, None]).any():
            return False
    return True


def _frame(base: Atoms, rng: Generator) -> Atoms:
    return displaced(base, rng, rng.uniform(0.02, 0.06))


