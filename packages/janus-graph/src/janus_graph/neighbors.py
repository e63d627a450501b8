"""Neighbour lists: who is closer to whom than the cutoff, and through which periodic image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, Int64

from janus_graph.search import Edges, EdgeSearch, pack, preferred_search
from janus_graph.structure import Structure


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
        reverse: place in this list of the edge (j ← i, −S).
    """

    centre: Int64[np.ndarray, "edges"]
    neighbour: Int64[np.ndarray, "edges"]
    shift: Int32[np.ndarray, "edges 3"]
    distance: Float64[np.ndarray, "edges"]
    reverse: Int64[np.ndarray, "edges"]

    def __len__(self) -> int:
        return len(self.centre)


def neighbor_list(structure: Structure, cutoff: float, search: EdgeSearch | None = None) -> NeighborList:
    """All directed edges of a structure that are strictly shorter than `cutoff` (Å).

    Self images (i = j with a shift) are included, an atom with itself (shift zero) is not. Cells smaller than the
    cutoff, mixed periodicity and atoms outside the cell are all welcome. For many structures `neighbor_lists` is
    faster.

    Raises:
        ValueError: the cutoff is not a positive number.
    """
    return neighbor_lists([structure], cutoff, search)[0]


def neighbor_lists(
    structures: Sequence[Structure], cutoff: float, search: EdgeSearch | None = None
) -> list[NeighborList]:
    """The neighbour lists of many structures, made in one go; each is what `neighbor_list` gives.

    Args:
        structures: any number of them.
        cutoff: edges are strictly shorter (Å).
        search: what looks for edges, by default the fastest that is installed (`janus_graph.search`).

    Raises:
        ValueError: the cutoff is not a positive number.
    """
    require_cutoff(cutoff)
    if not structures:
        return []
    packed = pack(structures)
    return _split((search or preferred_search())(packed, cutoff), packed.first_atom)


def require_cutoff(cutoff: float) -> None:
    """Refuses a cutoff that is not a length."""
    if not (np.isfinite(cutoff) and cutoff > 0):
        raise ValueError(f"cutoff is {cutoff}; it must be a positive length in Å")


def _split(edges: Edges, first_atom: Int64[np.ndarray, "structures_and_one"]) -> list[NeighborList]:
    """The edges of each structure on their own, atoms and edges counted from its first."""
    cuts = np.searchsorted(edges.index[0], first_atom).tolist()
    lists = []
    for structure, atom in enumerate(first_atom[:-1].tolist()):
        here = slice(cuts[structure], cuts[structure + 1])
        index, reverse = edges.index[:, here], edges.reverse[here]
        if structure:
            index, reverse = index - atom, reverse - here.start
        lists.append(NeighborList(index[0], index[1], edges.shift[here], edges.distance[here], reverse))
    return lists
