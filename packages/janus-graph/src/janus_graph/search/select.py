"""Compiled selection of the edges of a longer list that are short enough at new positions. Importing needs numba."""

# What numba compiles it also types.
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, check-untyped-defs=False

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64

from janus_graph.search.compiled import compiled
from janus_graph.search.packed import Edges


def edges_within(
    edges: Edges, positions: Float64[np.ndarray, "atoms 3"], cell: Float64[np.ndarray, "3 3"], cutoff: float
) -> Edges:
    """Those edges of one structure that are strictly shorter than the cutoff, with their lengths as they are now.

    Args:
        edges: a list that has them all, and more.
        positions: in the order that the edges count atoms in.
        cell: as it is now.
        cutoff: Å.
    """
    return Edges(*_selected(edges.index, edges.shift, edges.reverse, positions, cell, float(cutoff)))


@compiled
def _selected(index, shift, reverse, positions, cell, cutoff):
    edges = len(reverse)
    lengths = np.empty(edges, dtype=np.float64)
    places = np.empty(edges, dtype=np.int64)
    found = 0
    for e in range(edges):
        i, j = index[0, e], index[1, e]
        f0, f1, f2 = float(shift[e, 0]), float(shift[e, 1]), float(shift[e, 2])
        square = 0.0
        # The order of the sums is that of every search: see `EdgeSearch`.
        for k in range(3):
            translation = (f0 * cell[0, k] + f1 * cell[1, k]) + f2 * cell[2, k]
            component = (positions[j, k] - positions[i, k]) + translation
            square += component * component
        lengths[e] = math.sqrt(square)
        places[e] = found
        found += lengths[e] < cutoff
    new_index = np.empty((2, found), dtype=np.int64)
    new_shift = np.empty((found, 3), dtype=np.int32)
    new_lengths = np.empty(found, dtype=np.float64)
    new_reverse = np.empty(found, dtype=np.int64)
    for e in range(edges):
        if lengths[e] < cutoff:
            place = places[e]
            new_index[0, place], new_index[1, place] = index[0, e], index[1, e]
            for k in range(3):
                new_shift[place, k] = shift[e, k]
            new_lengths[place] = lengths[e]
            new_reverse[place] = places[reverse[e]]
    return new_index, new_shift, new_lengths, new_reverse
