"""What a search is given, structures laid one after the other, and what it finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from janus_graph.structure import Structure


@dataclass(frozen=True, eq=False)
class PackedStructures:
    """Structures as concatenated arrays, and the names their atoms have in the result.

    Attributes:
        positions: Å, structure by structure.
        cells: rows are lattice vectors, Å; rows along which nothing repeats are not looked at.
        periodic: which lattice directions repeat.
        first_atom: first atom of each structure, and one past the last.
        place: what each atom is called in the edges that are found; ascending within a structure.
    """

    positions: Float64[np.ndarray, "atoms 3"]
    cells: Float64[np.ndarray, "structures 3 3"]
    periodic: Bool[np.ndarray, "structures 3"]
    first_atom: Int64[np.ndarray, "structures_and_one"]
    place: Int64[np.ndarray, "atoms"]


@dataclass(frozen=True, eq=False)
class Edges:
    """Directed edges of all structures, sorted by centre, then neighbour, then shift.

    Attributes:
        index: row 0 the centre, row 1 the neighbour, by their places.
        shift: lattice translation of the neighbour.
        distance: length of the edge, Å.
        reverse: where the same edge is in the other direction.
    """

    index: Int64[np.ndarray, "2 edges"]
    shift: Int32[np.ndarray, "edges 3"]
    distance: Float64[np.ndarray, "edges"]
    reverse: Int64[np.ndarray, "edges"]

    def __len__(self) -> int:
        return self.index.shape[1]


EdgeSearch: TypeAlias = Callable[[PackedStructures, float], Edges]
"""Finds all edges strictly shorter than a cutoff in Å, however large it is beside a cell.

The vector of an edge is `(x_j − x_i) + ((S_0 h_0 + S_1 h_1) + S_2 h_2)` in float64, and its length the root of
`(x² + y²) + z²`. Reversing an edge negates every term, so its rounding too: both directions have the same length to the
last bit, and all searches agree about a neighbour that sits at the cutoff.
"""


def pack(structures: Sequence[Structure]) -> PackedStructures:
    """At least one structure, atoms named in the order they are in."""
    sizes = [len(structure) for structure in structures]
    first_atom = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=first_atom[1:])
    return PackedStructures(
        positions=np.concatenate([structure.positions for structure in structures]),
        cells=np.array([structure.cell for structure in structures]),
        periodic=np.array([structure.periodic for structure in structures]),
        first_atom=first_atom,
        place=np.arange(first_atom[-1]),
    )


def sorted_edges(
    index: Int64[np.ndarray, "2 edges"], shift: Int32[np.ndarray, "edges 3"], distance: Float64[np.ndarray, "edges"]
) -> Edges:
    """Edges in any order, sorted, with the places of their reverses; every edge must be there in both directions."""
    order = _sorting_order(index[0], index[1], shift)
    index, shift, distance = index[:, order], shift[order], distance[order]
    # Sorted by what their reverses are sorted by, the edges stand in the order of their reverses.
    reverse = np.empty(len(order), dtype=np.int64)
    reverse[_sorting_order(index[1], index[0], -shift)] = np.arange(len(order))
    return Edges(index, shift, distance, reverse)


def _sorting_order(
    centre: Int64[np.ndarray, "edges"], neighbour: Int64[np.ndarray, "edges"], shift: Int32[np.ndarray, "edges 3"]
) -> Int64[np.ndarray, "edges"]:
    """Which edge comes first, second, ...: one number an edge is sorted several times faster than five."""
    columns = [centre, neighbour, *shift.T.astype(np.int64)]
    lowest = [int(column.min(initial=0)) for column in columns]
    counts = [int(column.max(initial=0)) - low + 1 for column, low in zip(columns, lowest, strict=True)]
    if math.prod(counts) >= 2**63:
        return np.lexsort(columns[::-1])
    key = np.zeros(len(centre), dtype=np.int64)
    for column, low, count in zip(columns, lowest, counts, strict=True):
        key = key * count + (column - low)
    return np.argsort(key)
