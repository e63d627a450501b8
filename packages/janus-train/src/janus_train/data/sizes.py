"""How much there is of each frame of a run, for batches and shares: from memory, or from beside a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from janus_graph.packing import StructureSizes, structure_sizes
from janus_train.data.chosen import Chosen, ChosenColumn, ChosenFrames, Column
from janus_train.data.frame import Frame
from janus_train.data.on_demand import OnDemand, part_and_row, starts_of
from janus_train.data.store import Store, StoredSizes, measure_sizes, stored_sizes


@dataclass(frozen=True, eq=False)
class FrameSizes:
    """How much there is of each frame.

    Attributes:
        atoms: of it.
        edges: directed edges below the cutoff.
        near_pairs: ordered pairs of near edges with one centre.
        elements: different elements.
        by_element: for each frame its atomic numbers, the atoms of each, and the edges centred on them.
    """

    atoms: Column
    edges: Column
    near_pairs: Column
    elements: Column
    by_element: Sequence[np.ndarray]

    def of(self, places: Sequence[int] | np.ndarray) -> StructureSizes:
        """The sizes of some frames."""
        at = np.asarray(places, dtype=np.int64)
        return StructureSizes(self.atoms[at], self.edges[at], self.near_pairs[at], self.elements[at])


def frame_sizes(frames: Sequence[Frame], cutoff: float, near_cutoff: float) -> FrameSizes:
    """The sizes of frames with a model's cutoffs (Å).

    Those of stores are measured where they are not yet, and kept beside the store.

    Raises:
        UserError: a store without them that cannot be written to.
    """
    if not isinstance(frames, ChosenFrames):
        sizes = structure_sizes([frame.structure for frame in frames], cutoff, near_cutoff)
        return FrameSizes(sizes.atoms, sizes.edges, sizes.near_pairs, sizes.elements, sizes.by_element)
    parts = [_part_sizes(part, cutoff, near_cutoff) for part in frames.parts]
    atoms, edges, near_pairs, elements = (
        ChosenColumn([(columns[at], part.rows) for columns, part in zip(parts, frames.parts, strict=True)])
        for at in range(4)
    )
    return FrameSizes(atoms, edges, near_pairs, elements, _ByElement(frames, [columns[4] for columns in parts]))


def measure_stores(frames: Sequence[Frame], cutoff: float, near_cutoff: float) -> None:
    """Measures all stores that frames are chosen from, for these cutoffs; one process does it for all."""
    for part in frames.parts if isinstance(frames, ChosenFrames) else ():
        if isinstance(part.shelf.frames, Store):
            measure_sizes(part.shelf.frames, cutoff, near_cutoff)


class _Elements:
    """Numbers of different elements, from where the entries of each row begin."""

    def __init__(self, first: np.ndarray) -> None:
        self._first = first

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        at = rows.astype(np.int64)
        difference: np.ndarray = self._first[at + 1] - self._first[at]
        return difference


def _part_sizes(part: Chosen, cutoff: float, near_cutoff: float) -> tuple[Any, ...]:
    """Atoms, edges, near pairs, elements of all rows of a shelf, and edges of each of its entries."""
    frames, columns = part.shelf.frames, part.shelf.columns
    elements = _Elements(columns.first)
    if isinstance(frames, Store):
        measure_sizes(frames, cutoff, near_cutoff)
        stored = stored_sizes(frames, cutoff, near_cutoff)
        assert isinstance(stored, StoredSizes)
        return columns.atoms, stored.edges, stored.near_pairs, elements, stored.element_edges
    sizes = structure_sizes([frame.structure for frame in frames], cutoff, near_cutoff)
    entries = np.concatenate([np.zeros(0, dtype=np.int32), *(rows[2] for rows in sizes.by_element)])
    return columns.atoms, sizes.edges, sizes.near_pairs, elements, entries


class _ByElement(OnDemand[np.ndarray]):
    """Atoms and edges by element of chosen frames, put together where they are asked for."""

    def __init__(self, frames: ChosenFrames, element_edges: Sequence[np.ndarray]) -> None:
        self._columns = [part.shelf.columns for part in frames.parts]
        self._edges = element_edges
        self._rows = [part.rows for part in frames.parts]
        self._starts = starts_of([len(rows) for rows in self._rows])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _item(self, place: int) -> np.ndarray:
        number, at = part_and_row(self._starts, place)
        row, columns = int(self._rows[number][at]), self._columns[number]
        entries = slice(int(columns.first[row]), int(columns.first[row + 1]))
        found = [columns.element[entries], columns.count[entries], self._edges[number][entries]]
        return np.stack([np.asarray(values, dtype=np.int32) for values in found])
