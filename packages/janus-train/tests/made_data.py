"""Frames whose labels are known: a smooth pair potential, summed by loops, its derivatives by finite differences."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
from ase import Atoms

from janus_graph import Structure
from janus_train.data.frame import Frame

_REACH = 4.0
_IMAGES = np.array(list(product((-2, -1, 0, 1, 2), repeat=3)))


def pair_energy(numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, periodic: bool) -> float:
    """Energy of all pairs below 4 Å, eV; cells must be larger than 2 Å."""
    images = _IMAGES @ cell if periodic else np.zeros((1, 3))
    total = 0.0
    for i in range(len(numbers)):
        for j in range(len(numbers)):
            distance = np.linalg.norm(positions[j] + images - positions[i], axis=1)
            distance = distance[(distance > 1e-8) & (distance < _REACH)]
            well = (2.2 / distance) ** 8 - 2 * (2.2 / distance) ** 4
            scale = 0.5 + 0.005 * (numbers[i] + numbers[j])
            total += scale * float((well * (1 - (distance / _REACH) ** 2) ** 3).sum())
    return total


def derivative(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-4) -> np.ndarray:
    """Of a number by an array, by central differences."""
    slopes = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        ends = []
        for sign in (1, -1):
            moved = at.copy()
            moved[place] += sign * step
            ends.append(function(moved))
        slopes[place] = (ends[0] - ends[1]) / (2 * step)
    return slopes


def pair_frame(numbers: list[int], positions: np.ndarray, cell: np.ndarray | None = None, origin: str = "") -> Frame:
    """A frame with energy, forces and, in a cell, stress."""
    given = np.array(numbers)
    box = np.zeros((3, 3)) if cell is None else cell

    def energy(at: np.ndarray) -> float:
        return pair_energy(given, at, box, cell is not None)

    def strained(strain: np.ndarray) -> float:
        deformation = np.eye(3) + (strain + strain.T) / 2
        return pair_energy(given, positions @ deformation, box @ deformation, True)

    stress = None if cell is None else derivative(strained, np.zeros((3, 3))) / abs(np.linalg.det(box))
    structure = Structure(given, positions, box, np.full(3, cell is not None))
    return Frame(structure, "made", energy(positions), -derivative(energy, positions), stress, origin=origin)


def crystal(seed: int, cell: np.ndarray | None = None, origin: str = "", scatter: float = 0.03) -> Frame:
    """Two atoms of each of two kinds in a skewed cell; the same fractional coordinates for a seed."""
    rng = np.random.default_rng(seed)
    box = np.array([[3.6, 0.3, 0.0], [0.0, 3.5, 0.4], [0.2, 0.0, 3.7]]) if cell is None else cell
    fractions = np.array([[0.0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]) + scatter * rng.normal(size=(4, 3))
    return pair_frame([14, 14, 8, 8], fractions @ box, box, origin)


def molecule(seed: int, origin: str = "") -> Frame:
    """Three atoms, free."""
    rng = np.random.default_rng(seed)
    return pair_frame(
        [8, 1, 1], np.array([[0, 0, 0], [2.0, 0, 0], [0, 2.1, 0]]) + 0.1 * rng.normal(size=(3, 3)), None, origin
    )


def elastic_series(count: int = 8) -> list[Frame]:
    """A crystal in cells that are strained a little in all directions."""
    rng = np.random.default_rng(5)
    frames = []
    for number in range(count):
        strain = 0.012 * rng.normal(size=(3, 3))
        cell = np.array([[3.6, 0.3, 0.0], [0.0, 3.5, 0.4], [0.2, 0.0, 3.7]]) @ (np.eye(3) + (strain + strain.T) / 2)
        frames.append(crystal(1, cell, f"frame {number} of series.extxyz"))
    return frames


def displaced_series(count: int = 8) -> list[Frame]:
    """A crystal whose atoms move a little from frame to frame, and once leave the cell on one side to enter it on
    the other.
    """
    rng = np.random.default_rng(6)
    first = crystal(2)
    positions, cell = first.structure.positions.copy(), first.structure.cell
    frames = []
    for number in range(count):
        positions = positions + 0.02 * rng.normal(size=positions.shape)
        if number == count // 2:
            positions[1] -= cell[0]
        frames.append(pair_frame([14, 14, 8, 8], positions, cell, f"frame {number} of steps.extxyz"))
    return frames


def to_atoms(frame: Frame, **names: str) -> Atoms:
    """For ASE, labels in a calculator, or in info and arrays under other names."""
    from ase.calculators.singlepoint import SinglePointCalculator

    structure = frame.structure
    atoms = Atoms(structure.atomic_numbers, structure.positions, cell=structure.cell, pbc=structure.periodic)
    atoms.info = {"charge": structure.charge, "spin": structure.spin, "task": frame.task}
    labels = {name: getattr(frame, name) for name in ("energy", "forces", "stress") if frame.has(name)}
    for label, name in names.items():
        value = labels.pop(label)
        if label == "forces":
            atoms.arrays[name] = value
        else:
            atoms.info[name] = value
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def moved(structure: Structure, seed: int) -> Structure:
    """The same structure turned, moved, its atoms in another order and, in a cell, in other images."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = rng.permutation(len(structure))
    images = rng.integers(-1, 2, (len(structure), 3)) * structure.periodic
    positions = (structure.positions + images @ structure.cell)[order] @ turn + rng.normal(size=3)
    return replace(
        structure, atomic_numbers=structure.atomic_numbers[order], positions=positions, cell=structure.cell @ turn
    )


def assert_same(one: Frame, other: Frame, *, but: tuple[str, ...] = ()) -> None:
    """Frames are equal to the bit, but for some fields."""
    for name in ("atomic_numbers", "positions", "cell", "periodic", "charge", "spin", "task"):
        np.testing.assert_array_equal(getattr(one.structure, name), getattr(other.structure, name), err_msg=name)
    for name in ("task", "energy", "forces", "stress", "magmoms", "split", "group", "origin"):
        if name not in but:
            first, second = getattr(one, name), getattr(other, name)
            assert (first is None) == (second is None), name
            np.testing.assert_array_equal(first, second, err_msg=name)
