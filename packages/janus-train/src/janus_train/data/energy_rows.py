"""Energies per atom as sums over elements: least squares on frames that pass by once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from janus_graph import HIGHEST_ATOMIC_NUMBER
from janus_train.data.columns import Columns, formulas

_ELEMENTS = HIGHEST_ATOMIC_NUMBER + 1
# Frames that are taken in at once.
_BLOCK = 2048
# Singular values below this part of the largest are zero: fractions are exact to 1e-16.
_RANK_TOLERANCE = 1e-10
# A part of an element in a direction that nothing fixes, below which the element is fixed all the same.
_FIXED = 1e-6


@dataclass(frozen=True, eq=False)
class EnergyFit:
    """Energies of elements, and what the data say about them.

    Attributes:
        energies: of each element (place = atomic number), eV; zero for those that are not there.
        fitted: atomic numbers that were looked for, ascending.
        rank: how many numbers the compositions fix, of as many as there are fitted elements.
        open: of the fitted elements those that are not fixed, ascending.
        directions: an orthonormal basis of the changes to `energies` that no frame notices.
        residual: root mean square of what is left, eV/atom.
    """

    energies: Float64[np.ndarray, "elements"]
    fitted: tuple[int, ...]
    rank: int
    open: tuple[int, ...]
    directions: Float64[np.ndarray, "open elements"]
    residual: float


class EnergyRows:
    """What least squares need to know of any number of frames: the triangular factor of their rows.

    A row is the fractions of the elements in a frame, and its energy per atom. The factor has the same products with
    itself as all rows together and the precision of the rows; sums of products, which lose half the digits, are not
    made.

    Attributes:
        count: frames so far.
        mean: energy per atom, over the frames.
        present: atoms of each element.
    """

    def __init__(self) -> None:
        self.count, self._total = 0, 0.0
        self._fractions = np.zeros(_ELEMENTS)
        self.present: Int64[np.ndarray, "elements"] = np.zeros(_ELEMENTS, dtype=np.int64)
        self._factor = np.zeros((0, _ELEMENTS + 1))
        self._waiting, self._filled = np.zeros((0, _ELEMENTS + 1)), 0

    def add(self, counts: Int64[np.ndarray, "elements"], energy: float) -> None:
        """Takes in a frame: its atoms of each element, of which there is at least one, and its energy in eV."""
        self.present += counts
        row = np.append(counts, energy)[None] / counts.sum()
        self._count(row, np.ones(1))
        self._fill(row)

    def add_columns(self, columns: Columns) -> None:
        """Takes in frames, all of which have an energy and at least one atom.

        Of those with the same fractions of elements there is one row, with their mean energy and as much weight as
        they have together, and what they scatter is added to what is left.
        """
        self.present += atoms_of_elements(columns)
        per_atom = columns.energy / columns.atoms
        _, firsts, alike = np.unique(formulas(columns), return_index=True, return_inverse=True)
        weights = np.bincount(alike, minlength=len(firsts)).astype(np.float64)
        means = np.bincount(alike, per_atom, minlength=len(firsts)) / weights
        for start in range(0, len(firsts), _BLOCK):
            part = slice(start, start + _BLOCK)
            distinct = columns.take(firsts[part])
            rows = np.zeros((len(distinct), _ELEMENTS + 1))
            rows[distinct.row_of_entry(), distinct.element] = distinct.count
            rows /= distinct.atoms[:, None]
            rows[:, -1] = means[part]
            self._count(rows, weights[part])
            self._fill(rows * np.sqrt(weights[part])[:, None])
        scatter = np.zeros((1, _ELEMENTS + 1))
        scatter[0, -1] = np.sqrt(((per_atom - means[alike]) ** 2).sum())
        self._fill(scatter)

    def with_rows_of(self, other: EnergyRows) -> EnergyRows:
        """What the frames of both say together."""
        both = EnergyRows()
        both.count, both._total = self.count + other.count, self._total + other._total
        both._fractions, both.present = self._fractions + other._fractions, self.present + other.present
        self._take_in()
        other._take_in()
        both._factor = np.asarray(np.linalg.qr(np.concatenate([self._factor, other._factor]), mode="r"))
        return both

    @property
    def mean(self) -> float:
        """Energy per atom, over the frames; zero without any."""
        return self._total / max(self.count, 1)

    def mean_of(self, energies: Mapping[int, float]) -> float:
        """The mean energy per atom that these energies of elements give; others count as zero."""
        return sum(energy * float(self._fractions[z]) for z, energy in energies.items()) / max(self.count, 1)

    def fit(self, known: Mapping[int, float], ridge: float = 0.0) -> EnergyFit:
        """The energies of the elements that are there and not known, given those that are.

        The mean square of `Σ fraction · energy − energy per atom` over the frames, plus `ridge` times the squared
        distances of the fitted energies from the mean energy per atom, is least. Where that leaves something open,
        these distances are as small as can be: elements in a fixed ratio share alike.
        """
        self._take_in()
        energies = np.zeros(_ELEMENTS)
        energies[list(known)] = list(known.values())
        fitted = [int(z) for z in np.flatnonzero(self.present) if z not in known]
        rows, target = self._factor[:, :-1], self._factor[:, -1]
        columns, left = rows[:, fitted], target - rows @ energies
        _, sizes, directions = np.linalg.svd(columns, full_matrices=True) if fitted else (0, np.zeros(0), np.eye(0))
        rank = int((sizes > _RANK_TOLERANCE * sizes.max(initial=0.0)).sum())
        if fitted:
            apart = left - columns.sum(axis=1) * self.mean
            energies[fitted] = self.mean + _least_squares(columns, apart, ridge * self.count)
        nothing = np.zeros((len(fitted) - rank, _ELEMENTS))
        nothing[:, fitted] = directions[rank:]
        undecided = [z for z in fitted if (np.abs(nothing[:, z]) > _FIXED).any()]
        return EnergyFit(energies, tuple(fitted), rank, tuple(undecided), nothing, self.residual(energies))

    def residual(self, energies: Float64[np.ndarray, "elements"]) -> float:
        """Root mean square of what these energies of elements leave of the energies per atom."""
        self._take_in()
        left = self._factor[:, :-1] @ energies - self._factor[:, -1]
        return float(np.sqrt((left**2).sum() / max(self.count, 1)))

    def _count(self, rows: Float64[np.ndarray, "rows columns"], frames: Float64[np.ndarray, "rows"]) -> None:
        self.count += int(frames.sum())
        self._total += float(rows[:, -1] @ frames)
        self._fractions += frames @ rows[:, :-1]

    def _fill(self, rows: Float64[np.ndarray, "rows columns"]) -> None:
        """Rows wait for others, and are taken in with them."""
        if not len(self._waiting):
            self._waiting = np.zeros((_BLOCK, _ELEMENTS + 1))
        while len(rows):
            now, rows = rows[: _BLOCK - self._filled], rows[_BLOCK - self._filled :]
            self._waiting[self._filled : self._filled + len(now)] = now
            self._filled += len(now)
            if self._filled == _BLOCK:
                self._take_in()

    def _take_in(self) -> None:
        if self._filled:
            rows = np.concatenate([self._factor, self._waiting[: self._filled]])
            self._factor = np.asarray(np.linalg.qr(rows, mode="r"))
            self._filled = 0


def _least_squares(
    columns: Float64[np.ndarray, "rows fitted"], target: Float64[np.ndarray, "rows"], ridge: float
) -> Float64[np.ndarray, "fitted"]:
    count = columns.shape[1]
    if ridge:
        columns = np.concatenate([columns, np.sqrt(ridge) * np.eye(count)])
        target = np.concatenate([target, np.zeros(count)])
    solution: Float64[np.ndarray, "fitted"] = np.linalg.lstsq(columns, target, rcond=_RANK_TOLERANCE)[0]
    return solution


def atoms_of_elements(columns: Columns) -> Int64[np.ndarray, "elements"]:
    """Atoms of each element in all rows together."""
    found = np.bincount(columns.element, columns.count, minlength=_ELEMENTS)  # whole numbers: exact in float64
    return found.astype(np.int64)


def element_counts(atomic_numbers: Sequence[int] | np.ndarray) -> Int64[np.ndarray, "elements"]:
    """Atoms of each element."""
    return np.bincount(atomic_numbers, minlength=_ELEMENTS)
