"""Three-body terms: pairs of near edges that share their centre, as index pairs and as dense tables.

An atom with n near edges has n(n − 1) ordered pairs. A model that stores a vector per pair pays for each of them; dense
tables let it work on [atoms, n, n] products instead. Atoms are put into a handful of tables by their number of near
edges, so little is padded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

# Table widths are multiples of this: at most an eighth row of padding, and few tables.
_WIDTH_STEP = 8


@dataclass(frozen=True, eq=False)
class NearTables:
    """Near edges of each atom as rows of dense tables.

    Atoms with fewer than two near edges have no pair and are in no table.

    Attributes:
        edges: tables of edge indices, one row an atom; the number of edges (one past the last) stands for "nothing".
        slots: for every edge its place in the flattened, concatenated tables; one past the last place for edges that
            are in no table.
        pairs: number of ordered pairs (p, q), p ≠ q, over all atoms.
    """

    edges: tuple[Int64[Tensor, "atoms width"], ...]
    slots: Int64[Tensor, "edges"]
    pairs: int

    def to(self, device: torch.device | str) -> NearTables:
        """The same tables on another device."""
        return NearTables(tuple(table.to(device) for table in self.edges), self.slots.to(device), self.pairs)


def near_tables(centre: Int64[np.ndarray, "edges"], near: np.ndarray, atoms: int) -> NearTables:
    """Dense tables of the near edges of each atom.

    Args:
        centre: centre of every edge, ascending.
        near: which edges are near, [edges] of bool.
        atoms: number of atoms.
    """
    near_edge = np.flatnonzero(near)
    near_centre = centre[near_edge]
    count = np.bincount(near_centre, minlength=atoms)
    first = np.concatenate([[0], np.cumsum(count)[:-1]]) if atoms else count
    column = np.arange(len(near_edge)) - first[near_centre]
    width = np.where(count >= 2, -(-count // _WIDTH_STEP) * _WIDTH_STEP, 0)
    tables, slots, start = [], np.full(len(centre), -1, dtype=np.int64), 0
    for size in np.unique(width[width > 0]).tolist():
        members = np.flatnonzero(width == size)
        row_of_atom = np.full(atoms, -1, dtype=np.int64)
        row_of_atom[members] = np.arange(len(members))
        inside = width[near_centre] == size
        place = row_of_atom[near_centre[inside]] * size + column[inside]
        table = np.full(len(members) * size, len(centre), dtype=np.int64)
        table[place] = near_edge[inside]
        slots[near_edge[inside]] = start + place
        tables.append(torch.from_numpy(table.reshape(len(members), size)))
        start += table.size
    slots[slots < 0] = start
    return NearTables(tuple(tables), torch.from_numpy(slots), int((count * (count - 1)).sum()))


def near_pairs(centre: Int64[np.ndarray, "edges"], near: np.ndarray) -> Int64[np.ndarray, "2 pairs"]:
    """All ordered pairs (p, q), p ≠ q, of near edges with the same centre, sorted by p, then q.

    Args:
        centre: centre of every edge, ascending.
        near: which edges are near, [edges] of bool.
    """
    near_edge = np.flatnonzero(near)
    near_centre = centre[near_edge]
    atoms, inverse, count = np.unique(near_centre, return_inverse=True, return_counts=True)
    first = np.cumsum(count) - count if len(atoms) else count
    partners = count[inverse]
    p = np.repeat(np.arange(len(near_edge)), partners)
    within = np.arange(len(p)) - np.repeat(np.cumsum(partners) - partners, partners)
    q = np.repeat(first[inverse], partners) + within
    different = p != q
    return np.stack([near_edge[p[different]], near_edge[q[different]]])
