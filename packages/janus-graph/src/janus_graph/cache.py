"""Graphs of a structure that moves: edges a little beyond the cutoff are kept for as long as that is right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from janus_graph.batch import assemble_graph, pack_in_order, require_cutoffs
from janus_graph.graph import AtomGraph
from janus_graph.order import atom_order
from janus_graph.search import Edges, EdgeSearch, compiler_installed, preferred_search
from janus_graph.structure import Structure

# In smaller structures looking for edges anew is as fast as going through those that are kept.
_FEWEST_ATOMS_KEPT = 64
# What rounding may add to a displacement, relative to the largest coordinate.
_ROUNDING = 1e-13


class GraphCache:
    """Graphs for molecular dynamics and relaxation: those of `build_graph`, with less looking for edges.

    Edges up to `cutoff + skin` are kept. As long as nothing can have come from beyond that to within the cutoff, the
    graph of new positions and a new cell is made of those kept edges that are shorter than the cutoff now. It has the
    same edges, lengths and labels as a fresh one, whatever moved. Only the order of atoms of one element in a large
    structure can differ, as it is that of the positions the list was made at; `graph.in_input_order` undoes it either
    way.

    Small structures, and all of them where numba is not installed, are looked at anew every time: that is as fast.

    Args:
        cutoff: edges are strictly shorter (Å).
        near_cutoff: near edges are strictly shorter (Å).
        skin: how far beyond the cutoff edges are kept (Å). A wider one lasts longer and costs more at every step.
        search: what looks for edges, by default the fastest that is installed.

    Attributes:
        rebuilds: how often edges were looked for.

    Raises:
        ValueError: cutoffs as in `build_graph`, or a skin that is not a positive length.
    """

    def __init__(self, cutoff: float, near_cutoff: float, skin: float = 0.5, search: EdgeSearch | None = None) -> None:
        require_cutoffs(cutoff, near_cutoff)
        if not (np.isfinite(skin) and skin > 0):
            raise ValueError(f"skin is {skin}; it must be a positive length in Å; for no skin use build_graph")
        self.cutoff, self.near_cutoff, self.skin = cutoff, near_cutoff, skin
        self.rebuilds = 0
        self._search = search or preferred_search()
        self._kept: _Kept | None = None

    def graph(self, structure: Structure) -> AtomGraph:
        """The graph of one structure as it is now."""
        if len(structure) < _FEWEST_ATOMS_KEPT or not compiler_installed():
            order = atom_order([structure])
            edges = self._search(pack_in_order([structure], order), self.cutoff)
            self.rebuilds += 1
            self._kept = None
        else:
            order, edges = self._selected(structure)
        return assemble_graph([structure], order, edges, self.cutoff, self.near_cutoff)

    def _selected(self, structure: Structure) -> tuple[Int64[np.ndarray, "atoms"], Edges]:
        kept = self._kept
        if kept is None or not still_complete(kept.structure, structure, self.cutoff, self.skin):
            order = atom_order([structure])
            longer = self._search(pack_in_order([structure], order), self.cutoff + self.skin)
            own = Structure(
                structure.atomic_numbers.copy(),
                structure.positions.copy(),
                structure.cell.copy(),
                structure.periodic.copy(),
            )
            kept = self._kept = _Kept(own, order, longer)
            self.rebuilds += 1
        from janus_graph.search.select import edges_within

        positions = structure.positions[kept.order]
        return kept.order, edges_within(kept.edges, positions, structure.cell, self.cutoff)


@dataclass(frozen=True, eq=False)
class _Kept:
    """Edges up to cutoff and skin, where they were found, and how the atoms were ordered there."""

    structure: Structure
    order: Int64[np.ndarray, "atoms"]
    edges: Edges


def still_complete(before: Structure, now: Structure, cutoff: float, skin: float) -> bool:
    """Whether all edges below `cutoff` now were below `cutoff + skin` before, with the same shifts.

    The cell's change is a deformation F of space, h = h₀F, that F is nearest to none where nothing repeats, and atoms
    move by u on top of it: x = x₀F + u. A vector v₀ becomes v = v₀F + u_j − u_i, so |v₀| ≤ (|v| + |u_i| + |u_j|)/σ
    with σ the smallest singular value of F. Nothing below the cutoff can have been beyond cutoff + skin if
    cutoff + |u_i| + |u_j| < σ (cutoff + skin) for the two atoms that moved most. A displacement of all atoms together
    changes no vector and is taken off first.
    """
    if len(before) != len(now) or not (
        np.array_equal(before.atomic_numbers, now.atomic_numbers) and np.array_equal(before.periodic, now.periodic)
    ):
        return False
    deformation, condition = np.eye(3), 1.0
    periodic = now.periodic
    if periodic.any() and not np.array_equal(before.cell[periodic], now.cell[periodic]):
        rows = before.cell[periodic]
        inverse = np.linalg.pinv(rows)
        deformation += inverse @ (now.cell[periodic] - rows)
        condition += float(np.linalg.norm(inverse) * np.linalg.norm(rows))
    moved = now.positions - before.positions @ deformation
    moved -= moved.mean(axis=0)
    squares = np.einsum("ax,ax->a", moved, moved)
    largest = np.sqrt(np.partition(squares, len(squares) - 2)[-2:]) if len(squares) > 1 else np.sqrt(squares).repeat(2)
    size = max(np.abs(now.positions).max(), np.abs(before.positions).max(), np.abs(now.cell).max())
    shrinking = np.linalg.svd(deformation, compute_uv=False).min()
    return bool(cutoff + largest.sum() + _ROUNDING * condition * (1 + size) < shrinking * (cutoff + skin))
