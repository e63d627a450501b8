"""Who owns which atom, when a batch is computed by several ranks: even work, and few neighbours elsewhere.

A batch is one disconnected graph. Structures stay whole where they can, and need no neighbour from anywhere then; those
that are too large for the work to be even are cut by planes, at the place and across the direction where fewest atoms
are near. Everything here is integers and sorting on the host, the same on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from janus_graph.graph import AtomGraph
from janus_graph.packing import CostModel
from janus_graph.structure import Structure

# Parts differ from the mean by less than this share of it before a structure is cut for their sake.
_EVEN = 1 / 256
# Bins along a direction in which atoms near a plane are counted.
_BINS_PER_CUTOFF = 8
_MOST_BINS = 4096


@dataclass(frozen=True)
class Piece:
    """A part's share of a structure.

    Attributes:
        part: which part.
        work: what it takes over, in units of work.
    """

    part: int
    work: int


def partition_atoms(
    structures: Sequence[Structure], work: Sequence[Int64[np.ndarray, "atoms"]], parts: int, cutoff: float
) -> list[Int64[np.ndarray, "atoms"]]:
    """The part that owns each atom of each structure.

    Args:
        structures: of the batch; every part may own atoms of any of them.
        work: cost of each atom of each structure, in whole units (`atom_work`).
        parts: how many to make; some stay empty where there are too few atoms.
        cutoff: edges are shorter (Å); what is nearer than this to a cut is needed on both sides of it.

    Raises:
        ValueError: no part, or work that does not fit the structures.
    """
    if parts < 1:
        raise ValueError(f"a batch cannot be cut into {parts} parts; there must be at least one")
    for place, (structure, own) in enumerate(zip(structures, work, strict=True)):
        if np.shape(own) != (len(structure),) or (np.asarray(own) < 0).any():
            raise ValueError(
                f"structure {place} has {len(structure)} atoms, but its work is {np.shape(own)} numbers, of which "
                f"{int((np.asarray(own) < 0).sum())} are negative; give one that is not for each atom"
            )
    pieces = deal_structures([int(np.sum(own)) for own in work], parts)
    return [
        partition_structure(structure, np.asarray(own, dtype=np.int64), shares, cutoff)
        for structure, own, shares in zip(structures, work, pieces, strict=True)
    ]


def atom_work(graph: AtomGraph, cost: CostModel) -> Int64[np.ndarray, "atoms"]:
    """What each atom of a graph costs the rank that owns it: its edges, pairs of its near edges, and itself.

    Args:
        graph: a whole graph, on the CPU.
        cost: of an edge, a pair and an atom.
    """
    centre = graph.edge_index[0].numpy()
    near = np.bincount(centre[graph.near.edges.numpy()], minlength=graph.atoms)
    work: Int64[np.ndarray, "atoms"] = (
        cost.edge * np.bincount(centre, minlength=graph.atoms) + cost.near_pair * near * (near - 1) + cost.atom
    )
    return work


def deal_structures(totals: Sequence[int], parts: int, tolerance: float = 0.0) -> list[list[Piece]]:
    """How much of each structure each part gets: whole ones to the emptiest part, largest first; and then, from parts
    that have too much, a piece of their largest structure to parts that have too little.

    Args:
        totals: work of each structure.
        parts: how many there are.
        tolerance: nothing is cut where no part has more than this share above the mean. A cut costs an exchange in
            every block, which a little unevenness does not.
    """
    held: list[dict[int, int]] = [{} for _ in range(parts)]
    filled = [0] * parts
    for structure in sorted(range(len(totals)), key=lambda place: (-totals[place], place)):
        part = filled.index(min(filled))
        held[part][structure] = totals[structure]
        filled[part] += totals[structure]
    goal, slack = sum(totals) / parts, _EVEN * sum(totals) / parts
    cutting = max(filled) > (1 + tolerance) * goal
    while cutting:
        most, least = filled.index(max(filled)), filled.index(min(filled))
        excess = int(min(filled[most] - goal, goal - filled[least]))
        if filled[most] - goal <= slack or excess < 1:
            break
        structure = max(held[most], key=lambda place: (held[most][place], -place))
        excess = min(excess, held[most][structure])
        held[most][structure] -= excess
        held[least][structure] = held[least].get(structure, 0) + excess
        filled[most] -= excess
        filled[least] += excess
    return [
        [Piece(part, held[part][place]) for part in range(parts) if held[part].get(place)] or [Piece(0, 0)]
        for place in range(len(totals))
    ]


def partition_structure(
    structure: Structure, work: Int64[np.ndarray, "atoms"], pieces: Sequence[Piece], cutoff: float
) -> Int64[np.ndarray, "atoms"]:
    """The part that owns each atom of one structure, cut into pieces, half of them at a time.

    Args:
        structure: to cut.
        work: cost of each atom.
        pieces: who gets how much; only the proportions count.
        cutoff: edges are shorter (Å).
    """
    owner = np.full(len(structure), pieces[0].part, dtype=np.int64)
    if len(pieces) == 1:
        return owner
    heights, open_directions = _coordinates(structure)
    todo: list[tuple[np.ndarray, Sequence[Piece], np.ndarray]]
    todo = [(np.arange(len(structure)), pieces, open_directions)]
    while todo:
        atoms, some, periodic = todo.pop()
        if len(some) == 1 or not len(atoms):
            owner[atoms] = some[0].part
            continue
        first, second = some[: len(some) // 2], some[len(some) // 2 :]
        share = sum(piece.work for piece in first) / max(sum(piece.work for piece in some), 1)
        axis, begin = _best_plane(heights[atoms], work[atoms], periodic, share, cutoff)
        if periodic[axis]:
            heights[atoms, axis] = (heights[atoms, axis] - begin) % periodic[axis]
            periodic = np.where(np.arange(3) == axis, 0.0, periodic)
        order, taken = _first_side(heights[atoms, axis], work[atoms], share)
        todo += [(atoms[order[:taken]], first, periodic), (atoms[order[taken:]], second, periodic)]
    return owner


def _coordinates(structure: Structure) -> tuple[Float64[np.ndarray, "atoms 3"], Float64[np.ndarray, "3"]]:
    """Heights of the atoms over the planes of the cell, Å, and the period of each; 0 where nothing repeats."""
    periodic = structure.periodic
    rows = structure.cell[periodic]
    # Lattice vectors, made a basis of space by directions across them.
    rest = np.linalg.svd(rows)[2][len(rows) :] if len(rows) else np.eye(3)
    basis = np.concatenate([rows, rest])
    normal = np.linalg.inv(basis).T
    period = 1 / np.linalg.norm(normal, axis=1)
    fraction = structure.positions @ normal.T
    fraction[:, : len(rows)] -= np.floor(fraction[:, : len(rows)])
    lengths = period.copy()
    lengths[len(rows) :] = 0.0
    return fraction * period, lengths


def _best_plane(
    heights: Float64[np.ndarray, "atoms 3"],
    work: Int64[np.ndarray, "atoms"],
    periodic: Float64[np.ndarray, "3"],
    share: float,
    cutoff: float,
) -> tuple[int, float]:
    """The direction in which a cut at `share` of the work has fewest atoms near, and where to begin along it.

    Across a direction that still repeats a cut is two planes, and where to begin is free: where fewest atoms are near
    the first plane and the second one that follows from it.
    """
    best = (np.inf, 0, 0.0)
    for axis in range(3):
        along, length = heights[:, axis], float(periodic[axis])
        low = 0.0 if length else float(along.min())
        span = length or float(along.max()) - low
        bins = min(max(1, int(span / cutoff * _BINS_PER_CUTOFF)), _MOST_BINS)
        place = np.minimum(((along - low) * (bins / max(span, 1e-12))).astype(np.int64), bins - 1)
        counts, works = np.bincount(place, minlength=bins), np.bincount(place, work, minlength=bins)
        reach = -(-bins * cutoff // max(span, cutoff))
        if length:
            near, begin = _two_planes(counts, works, share, min(int(reach), bins // 2))
        else:
            cut = int(np.searchsorted(np.cumsum(works), share * works.sum()))
            near, begin = int(counts[max(0, cut + 1 - int(reach)) : cut + 1 + int(reach)].sum()), 0
        if near < best[0]:
            best = near, axis, low + begin * span / bins
    return best[1], best[2]


def _two_planes(
    counts: Int64[np.ndarray, "bins"], works: Float64[np.ndarray, "bins"], share: float, reach: int
) -> tuple[int, int]:
    """Atoms near a plane at the lower edge of a bin and near the plane that has `share` of the work behind it; fewest
    of all bins, and that bin."""
    bins = len(counts)
    turns = np.concatenate([[0], np.cumsum(np.tile(counts, 3))])
    edges = np.arange(bins, 2 * bins)
    near = turns[edges + reach] - turns[edges - reach]
    done = np.concatenate([[0.0], np.cumsum(np.tile(works, 2))])
    near = near + near[np.searchsorted(done, done[:bins] + share * done[bins]) % bins]
    begin = int(near.argmin())
    return int(near[begin]), begin


def _first_side(
    along: Float64[np.ndarray, "atoms"], work: Int64[np.ndarray, "atoms"], share: float
) -> tuple[Int64[np.ndarray, "atoms"], int]:
    """Atoms in order along a direction, and how many have together the nearest to `share` of the work."""
    order = np.argsort(along, kind="stable")
    done = np.concatenate([[0], np.cumsum(work[order])])
    after = int(np.searchsorted(done, share * done[-1]))
    if after and done[after] - share * done[-1] > share * done[-1] - done[after - 1]:
        after -= 1
    return order, after
