"""Edges by vesin, a neighbour-list library in C++: correct, linear in time, and there where no compiler is."""

from __future__ import annotations

import numpy as np
import vesin
from jaxtyping import Bool, Float64

from janus_graph.search.packed import Edges, PackedStructures, sorted_edges

# The library is asked for a hair more than the cutoff and the exact test is done here, in float64. Otherwise its
# rounding would decide about a neighbour that sits at the cutoff, and differently in the two directions.
_MARGIN = 1e-9


def library_search(packed: PackedStructures, cutoff: float) -> Edges:
    """Edges by vesin, structure by structure, sorted afterwards."""
    # One thread: the structures of a batch are many and small, and the trainer runs beside this.
    library = vesin.NeighborList(cutoff=cutoff * (1 + _MARGIN), full_list=True, n_threads=1)
    indices, shifts, distances = [], [], []
    for structure, cell in enumerate(packed.cells):
        start, stop = packed.first_atom[structure : structure + 2]
        positions, periodic = packed.positions[start:stop], packed.periodic[structure]
        centre, neighbour, shift = library.compute(positions, complete_cell(cell, periodic), periodic, quantities="ijS")
        index = np.stack([centre, neighbour]).astype(np.int64)
        shift = shift.astype(np.int32).reshape(-1, 3)
        s0, s1, s2 = (shift[:, row, None] for row in range(3))
        vector = (positions[index[1]] - positions[index[0]]) + ((s0 * cell[0] + s1 * cell[1]) + s2 * cell[2])
        square = np.square(vector)
        distance = np.sqrt((square[:, 0] + square[:, 1]) + square[:, 2])
        keep = np.flatnonzero(distance < cutoff)
        indices.append(packed.place[index[:, keep] + start])
        shifts.append(shift[keep])
        distances.append(distance[keep])
    return sorted_edges(np.concatenate(indices, axis=1), np.concatenate(shifts), np.concatenate(distances))


def complete_cell(cell: Float64[np.ndarray, "3 3"], periodic: Bool[np.ndarray, "3"]) -> Float64[np.ndarray, "3 3"]:
    """The cell with every direction that is not periodic replaced by a unit vector at right angles to the rest.

    Such rows are never translated along, but a neighbour search needs three independent vectors.
    """
    if periodic.all():
        return cell
    # The last right-singular vectors span what the periodic rows leave out.
    _, _, rows = np.linalg.svd(np.where(periodic[:, None], cell, 0.0))
    completed = cell.copy()
    completed[~periodic] = rows[int(periodic.sum()) :]
    return completed
