"""Three-body terms: pairs of near edges that share their centre, as index pairs and as dense tables.

An atom with n near edges has n(n − 1) ordered pairs. A model that stores a vector per pair pays for each of them; dense
tables let it work on [atoms, n, n] products instead. Atoms are put into a handful of tables by their number of near
edges, so little is padded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

# Table widths are multiples of this: at most an eighth row of padding, and few tables.
_WIDTH_STEP = 8


@dataclass(frozen=True, eq=False)
class NearTables:
    """Near edges of each atom as rows of dense tables.

    Atoms with fewer than two near edges have no pair and are in no table.

    Attributes:
        edges: indices of the edges that are in a table, ascending; the tables count in this list.
        tables: one row an atom; `len(edges)` (one past the last) stands for "nothing".
        slots: for each of `edges` its place in the flattened, concatenated tables.
        pairs: number of ordered pairs (p, q), p ≠ q, over all atoms.
    """

    edges: Int64[Tensor, "near"]
    tables: tuple[Int64[Tensor, "atoms width"], ...]
    slots: Int64[Tensor, "near"]
    pairs: int

    def to(self, device: torch.device | str) -> NearTables:
        """The same tables on another device."""
        tables = tuple(table.to(device) for table in self.tables)
        return NearTables(self.edges.to(device), tables, self.slots.to(device), self.pairs)


def near_tables(centre: Int64[np.ndarray, "edges"], near: Bool[np.ndarray, "edges"], atoms: int) -> NearTables:
    """Dense tables of the near edges of each atom.

    Args:
        centre: centre of every edge, ascending.
        near: which edges are near.
        atoms: number of atoms.
    """
    count = np.bincount(centre[near], minlength=atoms)
    edges = np.flatnonzero(near & (count[centre] >= 2))
    count = np.where(count >= 2, count, 0)
    width_of_atom = -(-count // _WIDTH_STEP) * _WIDTH_STEP
    owner = centre[edges]
    column = np.arange(len(edges)) - (np.cumsum(count) - count)[owner]
    tables, slots, start = [], np.empty(len(edges), dtype=np.int64), 0
    for width in np.unique(width_of_atom[width_of_atom > 0]).tolist():
        members = width_of_atom == width
        row_of_atom = np.cumsum(members) - 1
        inside = np.flatnonzero(members[owner])
        place = row_of_atom[owner[inside]] * width + column[inside]
        table = np.full(int(members.sum()) * width, len(edges), dtype=np.int64)
        table[place] = inside
        slots[inside] = start + place
        tables.append(torch.from_numpy(table.reshape(-1, width)))
        start += table.size
    pairs = int((count * (count - 1)).sum())
    return NearTables(torch.from_numpy(edges), tuple(tables), torch.from_numpy(slots), pairs)


def near_pairs(centre: Int64[np.ndarray, "edges"], near: Bool[np.ndarray, "edges"]) -> Int64[np.ndarray, "2 pairs"]:
    """All ordered pairs (p, q), p ≠ q, of near edges with the same centre, sorted by p, then q.

    Args:
        centre: centre of every edge, ascending.
        near: which edges are near.
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
