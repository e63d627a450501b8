"""One structure on the host: what a neighbour list is made from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

HIGHEST_ATOMIC_NUMBER = 118

# Cells flatter than this (volume over the product of the edge lengths) cannot hold a periodic structure.
_FLATTEST_CELL = 1e-6


@dataclass(frozen=True, eq=False)
class Structure:
    """Atoms, their cell and the labels that belong to the structure as a whole.

    Attributes:
        atomic_numbers: 1 (hydrogen) to 118.
        positions: Cartesian coordinates in Å; atoms may lie outside the cell.
        cell: rows are the lattice vectors in Å; rows of directions that are not periodic may be zero.
        periodic: which of the three lattice directions repeat.
        charge: total charge in e.
        spin: multiplicity 2S + 1.
        task: index of the data set (level of theory) whose reference energies apply.

    Raises:
        ValueError: no atoms, atomic numbers outside 1 to 118, coordinates that are not finite, a spin below 1, shapes
            that do not match, or a periodic cell without volume. The message says which and how to mend it.
    """

    atomic_numbers: Int64[np.ndarray, "atoms"]
    positions: Float64[np.ndarray, "atoms 3"]
    cell: Float64[np.ndarray, "3 3"]
    periodic: Bool[np.ndarray, "3"]
    charge: int = 0
    spin: int = 1
    task: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "atomic_numbers", np.asarray(self.atomic_numbers, dtype=np.int64))
        object.__setattr__(self, "positions", np.asarray(self.positions, dtype=np.float64))
        object.__setattr__(self, "cell", np.asarray(self.cell, dtype=np.float64))
        object.__setattr__(self, "periodic", np.asarray(self.periodic, dtype=bool))
        self._check_atoms()
        self._check_cell()

    def __len__(self) -> int:
        return len(self.atomic_numbers)

    def _check_atoms(self) -> None:
        numbers, positions = self.atomic_numbers, self.positions
        if numbers.ndim != 1 or positions.shape != (len(numbers), 3):
            raise ValueError(
                f"positions have shape {positions.shape} and atomic_numbers {numbers.shape}; "
                "they must be [atoms, 3] and [atoms]"
            )
        if len(numbers) == 0:
            raise ValueError("the structure has no atoms; remove it from the data")
        if numbers.min() < 1 or numbers.max() > HIGHEST_ATOMIC_NUMBER:
            unknown = np.flatnonzero((numbers < 1) | (numbers > HIGHEST_ATOMIC_NUMBER))
            raise ValueError(
                f"atom {unknown[0]} has atomic number {numbers[unknown[0]]}; "
                f"elements are 1 (H) to {HIGHEST_ATOMIC_NUMBER}"
            )
        # One product instead of a look at each number; where that is not finite, they are looked at.
        if not math.isfinite(np.vdot(positions, positions)):
            bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
            if len(bad):
                raise ValueError(f"the position of atom {bad[0]} is {positions[bad[0]]}; positions must be finite")
        if self.spin < 1:
            raise ValueError(f"spin is {self.spin}; it is a multiplicity 2S + 1, so 1 or more")

    def _check_cell(self) -> None:
        if self.cell.shape != (3, 3) or self.periodic.shape != (3,):
            raise ValueError(
                f"cell has shape {self.cell.shape} and periodic {self.periodic.shape}; must be [3, 3] and [3]"
            )
        cell, periodic = self.cell.tolist(), self.periodic.tolist()
        if not all(math.isfinite(entry) for row in cell for entry in row):
            raise ValueError("the cell has entries that are not finite")
        rows = [row for row, repeats in zip(cell, periodic, strict=True) if repeats]
        if rows and _is_flat(rows):
            lengths = [math.hypot(*row) for row in rows]
            raise ValueError(
                f"the cell has no volume along its periodic directions (periodic = {periodic}, "
                f"lengths = {lengths} Å); give lattice vectors or set pbc to F F F"
            )

    @property
    def has_volume(self) -> bool:
        """Whether stress is defined: all three directions repeat."""
        return bool(self.periodic.all())


def structures_end_to_end(
    counts: Sequence[int],
    atomic_numbers: Int64[np.ndarray, "all_atoms"],
    positions: Float64[np.ndarray, "all_atoms 3"],
    cells: Float64[np.ndarray, "structures 3 3"],
    periodic: Bool[np.ndarray, "structures 3"],
    charges_and_spins: Sequence[tuple[int, int]],
) -> list[Structure]:
    """Structures whose atoms lie end to end in arrays, which they are views of: the same as one by one, and some times
    as fast for small ones, since all are checked at once.

    Args:
        counts: atoms of each structure.
        atomic_numbers: of all atoms.
        positions: of all atoms, Å.
        cells: of each structure, Å.
        periodic: of each structure.
        charges_and_spins: of each structure.

    Raises:
        ValueError: what `Structure` raises of the first that is wrong, or counts of other numbers of atoms.
    """
    if sum(counts) != len(atomic_numbers):
        raise ValueError(f"counts are of {sum(counts)} atoms, and there are {len(atomic_numbers)} atomic numbers")
    ends = list(itertools.accumulate(counts))
    parts = [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]
    fields = zip(parts, cells, periodic, charges_and_spins, strict=True)
    spins_are_right = all(spin >= 1 for _, spin in charges_and_spins)
    if not (
        spins_are_right and _atoms_are_right(counts, atomic_numbers, positions) and _cells_are_right(cells, periodic)
    ):
        return [
            Structure(atomic_numbers[at], positions[at], cell, repeats, charge, spin)
            for at, cell, repeats, (charge, spin) in fields
        ]
    found = []
    for at, cell, repeats, (charge, spin) in fields:
        structure = object.__new__(Structure)
        structure.__dict__.update(
            atomic_numbers=atomic_numbers[at], positions=positions[at], cell=cell, periodic=repeats, charge=charge,
            spin=spin, task=0,
        )  # fmt: skip
        found.append(structure)
    return found


def _atoms_are_right(
    counts: Sequence[int], atomic_numbers: Int64[np.ndarray, "all_atoms"], positions: Float64[np.ndarray, "all_atoms 3"]
) -> bool:
    """Whether atoms of none of the structures would be refused; false where they might."""
    if (str(atomic_numbers.dtype), str(positions.dtype)) != ("int64", "float64"):
        return False
    if positions.shape != (len(atomic_numbers), 3) or not len(counts) or min(counts) < 1:
        return False
    in_table = atomic_numbers.min() >= 1 and atomic_numbers.max() <= HIGHEST_ATOMIC_NUMBER
    return bool(in_table and np.isfinite(positions).all())


def _cells_are_right(cells: Float64[np.ndarray, "structures 3 3"], periodic: Bool[np.ndarray, "structures 3"]) -> bool:
    """Whether cells of none of the structures would be refused; false where they might."""
    if (str(cells.dtype), str(periodic.dtype)) != ("float64", "bool") or not np.isfinite(cells).all():
        return False
    whole, some = periodic.all(axis=1), periodic.any(axis=1)
    lengths = np.sqrt(np.square(cells[whole]).sum(axis=2)).prod(axis=1)
    # A hair more than is asked for one by one, so that rounding of either never decides.
    if (np.abs(np.linalg.det(cells[whole])) <= 2 * _FLATTEST_CELL * lengths).any():
        return False
    slabs = some & ~whole
    return not any(_is_flat(cell[axes].tolist()) for cell, axes in zip(cells[slabs], periodic[slabs], strict=True))


def _is_flat(rows: Sequence[Sequence[float]]) -> bool:
    """Whether lattice vectors span hardly anything for their lengths."""
    return not _content(rows) > _FLATTEST_CELL * math.prod(math.hypot(*row) for row in rows)


def _content(rows: Sequence[Sequence[float]]) -> float:
    """Length, area or volume that one, two or three vectors span; arrays so small are slower than plain numbers."""
    if len(rows) == 1:
        return math.hypot(*rows[0])
    (a, b, c), (d, e, f) = rows[0], rows[1]
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    if len(rows) == 2:
        return math.hypot(*normal)
    return abs(normal[0] * rows[2][0] + normal[1] * rows[2][1] + normal[2] * rows[2][2])
