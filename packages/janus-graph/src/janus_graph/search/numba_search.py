"""Edges by compiled loops. Importing this imports numba."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import math

import numpy as np

from janus_graph.search.kernels import half_edges
from janus_graph.search.mirror import both_directions, count_rows
from janus_graph.search.packed import Edges, PackedStructures

# Half edges of an atom that is not in a crystal, as far as room is set aside for them beforehand.
_HALF_EDGES_ELSEWHERE = 40


def numba_search(packed: PackedStructures, cutoff: float, most_by_pairs: int) -> Edges:
    """Edges of many structures in one go, or of a large one, in time linear in their number."""
    guess = _likely_half_edges(packed, cutoff)
    halves = half_edges(
        packed.positions, packed.cells, packed.periodic, packed.first_atom, float(cutoff), most_by_pairs, guess
    )
    begin, end, neighbours = halves[:3]
    counts = count_rows(packed.first_atom, begin, end, neighbours)
    per_atom = counts.sum(axis=0)
    by_place = np.zeros(packed.place.max() + 2, dtype=np.int64)
    by_place[packed.place + 1] = per_atom
    row_start = np.cumsum(by_place)[packed.place]
    found = both_directions(packed.first_atom, packed.place, row_start, counts, int(per_atom.sum()), halves)
    return Edges(*found)


def _likely_half_edges(packed: PackedStructures, cutoff: float) -> int:
    """About how many there will be, from densities; too few costs a copy, too many costs nothing."""
    sizes = np.diff(packed.first_atom)
    volumes = np.abs(np.linalg.det(packed.cells))
    sphere = 4 / 3 * math.pi * cutoff**3
    crystals = packed.periodic.all(axis=1)
    neighbours = np.minimum(sizes - 1.0, _HALF_EDGES_ELSEWHERE)
    neighbours[crystals] = 0.5 * sphere * sizes[crystals] / volumes[crystals]
    return int(min(1.1 * (sizes * (neighbours + 1)).sum() + 1000, 2**31))
