"""Neighbour lists: who is closer to whom than the cutoff, and through which periodic image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import vesin
from jaxtyping import Float64, Int32, Int64

from janus_graph.structure import Structure

# The library is asked for a hair more than the cutoff and the exact test is done here, in float64. Otherwise its
# rounding would decide about a neighbour that sits at the cutoff, and differently in the two directions.
_MARGIN = 1e-9


@dataclass(frozen=True, eq=False)
class NeighborList:
    """Directed edges of one structure, sorted by centre, then neighbour, then shift.

    An edge (i ← j, S) stands for the vector `positions[j] + S @ cell - positions[i]`, from centre to neighbour, whose
    length is strictly below the cutoff. Every edge is there in both directions.

    Attributes:
        centre: index i of the atom that owns the edge.
        neighbour: index j.
        shift: the lattice translation S of the neighbour, whole numbers.
        distance: length of the edge in Å.
    """

    centre: Int64[np.ndarray, "edges"]
    neighbour: Int64[np.ndarray, "edges"]
    shift: Int32[np.ndarray, "edges 3"]
    distance: Float64[np.ndarray, "edges"]

    def __len__(self) -> int:
        return len(self.centre)


def neighbor_list(structure: Structure, cutoff: float) -> NeighborList:
    """All directed edges of a structure that are strictly shorter than `cutoff` (Å).

    Self images (i = j with a shift) are included, an atom with itself (shift zero) is not. Cells smaller than the
    cutoff, mixed periodicity and atoms outside the cell are all welcome.

    Raises:
        ValueError: the cutoff is not a positive number.
    """
    if not (np.isfinite(cutoff) and cutoff > 0):
        raise ValueError(f"cutoff is {cutoff}; it must be a positive length in Å")
    # One thread: the structures of a batch are many and small, and the trainer runs beside this.
    library = vesin.NeighborList(cutoff=cutoff * (1 + _MARGIN), full_list=True, n_threads=1)
    centre, neighbour, shift = library.compute(
        structure.positions, complete_cell(structure), structure.periodic, quantities="ijS"
    )
    centre, neighbour = centre.astype(np.int64), neighbour.astype(np.int64)
    shift = shift.astype(np.int32).reshape(-1, 3)
    # Difference first, translation added row by row: reversing an edge negates every term, so its rounding too, and
    # both directions have the same length to the last bit.
    vector = structure.positions[neighbour] - structure.positions[centre]
    vector = vector + sum(shift[:, row, None] * structure.cell[row] for row in range(3))
    distance = np.sqrt(np.einsum("ij,ij->i", vector, vector))
    keep = np.flatnonzero(distance < cutoff)
    order = keep[np.lexsort((shift[keep, 2], shift[keep, 1], shift[keep, 0], neighbour[keep], centre[keep]))]
    return NeighborList(centre[order], neighbour[order], shift[order], distance[order])


def complete_cell(structure: Structure) -> Float64[np.ndarray, "3 3"]:
    """The cell with every direction that is not periodic replaced by a unit vector at right angles to the rest.

    Such rows are never translated along, but a neighbour search needs three independent vectors.
    """
    cell, periodic = structure.cell.copy(), structure.periodic
    if periodic.all():
        return cell
    # The last right-singular vectors span what the periodic rows leave out.
    _, _, rows = np.linalg.svd(np.where(periodic[:, None], cell, 0.0))
    cell[~periodic] = rows[int(periodic.sum()) :]
    return cell
