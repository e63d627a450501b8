"""What structures cost before they are computed, and shares of equal cost: integers, the same on every rank."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

from janus_graph.neighbors import neighbor_lists
from janus_graph.search import EdgeSearch
from janus_graph.structure import Structure

# Atoms whose edges are held at a time while they are only counted.
_ATOMS_AT_A_TIME = 4096
# No rank has more atoms than this times the mean, as far as structures can be divided.
_ATOM_SLACK = 1.2


@dataclass(frozen=True, eq=False)
class StructureSizes:
    """How much there is of each structure.

    Attributes:
        atoms: number of atoms.
        edges: directed edges below the cutoff.
        near_pairs: ordered pairs of near edges with one centre.
        elements: different elements.
        by_element: for each structure its atomic numbers, the atoms of each, and the edges centred on them.
    """

    atoms: Int64[np.ndarray, "structures"]
    edges: Int64[np.ndarray, "structures"]
    near_pairs: Int64[np.ndarray, "structures"]
    elements: Int64[np.ndarray, "structures"]
    by_element: Sequence[Int32[np.ndarray, "3 elements"]] = ()


@dataclass(frozen=True)
class CostModel:
    """What a structure costs, in units of a thousandth of an edge: a sum over what there is of it.

    The defaults are proportions of the time of a training step of MatRIS-MoE, preset `micro`, on a CPU, which they
    foretell to 7 %; `benchmarks/graphs.py --fit-costs micro` fits them anew.

    Attributes:
        edge: of a directed edge.
        near_pair: of a pair of near edges.
        atom: of an atom.
        element: of a different element: each brings weights of its own and splits products into smaller ones.
    """

    edge: int = 1000
    near_pair: int = 13
    atom: int = 2400
    element: int = 3500

    def __call__(self, sizes: StructureSizes) -> Int64[np.ndarray, "structures"]:
        """The cost of each structure, a whole number so that ranks agree about it."""
        return (
            self.edge * sizes.edges
            + self.near_pair * sizes.near_pairs
            + self.atom * sizes.atoms
            + self.element * sizes.elements
        )


def structure_sizes(
    structures: Sequence[Structure], cutoff: float, near_cutoff: float, search: EdgeSearch | None = None
) -> StructureSizes:
    """Sizes of any number of structures; edges are looked for, counted and let go.

    Args:
        structures: what to measure.
        cutoff: edges are strictly shorter (Å).
        near_cutoff: near edges are strictly shorter (Å).
        search: what looks for edges, by default the fastest that is installed.
    """
    atoms = np.array([len(structure) for structure in structures], dtype=np.int64)
    elements = np.array([len(np.unique(s.atomic_numbers)) for s in structures], dtype=np.int64)
    edges, near_pairs = np.zeros_like(atoms), np.zeros_like(atoms)
    by_element = [np.zeros((3, 0), dtype=np.int32)] * len(structures)
    part = np.cumsum(atoms) // _ATOMS_AT_A_TIME
    for number in np.unique(part):
        places = np.flatnonzero(part == number).tolist()
        lists = neighbor_lists([structures[place] for place in places], cutoff, search)
        for place, listed in zip(places, lists, strict=True):
            near = np.bincount(listed.centre[listed.distance < near_cutoff])
            edges[place], near_pairs[place] = len(listed), (near * (near - 1)).sum()
            by_element[place] = _by_element(structures[place].atomic_numbers, listed.centre)
    return StructureSizes(atoms, edges, near_pairs, elements, by_element)


def _by_element(numbers: Int64[np.ndarray, "atoms"], centre: Int64[np.ndarray, "edges"]) -> np.ndarray:
    """Atomic numbers, how many atoms have each, and how many edges are centred on those."""
    elements, element_of = np.unique(numbers, return_inverse=True)
    atoms = np.bincount(element_of, minlength=len(elements))
    edges = np.bincount(element_of[centre], minlength=len(elements))
    return np.stack([elements, atoms, edges]).astype(np.int32)


def share_out(costs: Sequence[int], atoms: Sequence[int], ranks: int) -> list[list[int]]:
    """Items for each rank so that the dearest rank is cheap and none has many more atoms than the mean.

    The dearest item goes first, to whoever has least and room for its atoms; where nobody has room, to whoever has the
    fewest atoms. Every item goes to exactly one rank; ranks may stay empty. Ties go to the lower rank, so all ranks
    agree.

    Args:
        costs: of each item.
        atoms: of each item; what memory grows with.
        ranks: how many shares to make.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    held = [0] * ranks
    room = _ATOM_SLACK * sum(atoms) / ranks
    load = [(0, rank) for rank in range(ranks)]
    for item in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
        full = []
        while load and held[load[0][1]] + atoms[item] > room:
            full.append(heapq.heappop(load))
        if load:
            total, rank = heapq.heappop(load)
        else:
            total, rank = min(full, key=lambda entry: (held[entry[1]], entry))
            full.remove((total, rank))
        shares[rank].append(item)
        held[rank] += atoms[item]
        for entry in (*full, (total + costs[item], rank)):
            heapq.heappush(load, entry)
    return [sorted(share) for share in shares]
