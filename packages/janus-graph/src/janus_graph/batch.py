"""From structures to the graph of a batch. Everything here is integers on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64

from janus_graph.graph import AtomGraph
from janus_graph.neighbors import NeighborList, require_cutoff
from janus_graph.order import atom_order
from janus_graph.search import Edges, EdgeSearch, PackedStructures, preferred_search, sorted_edges
from janus_graph.structure import HIGHEST_ATOMIC_NUMBER, Structure
from janus_graph.tables import edge_tables, near_tables


def build_graph(
    structures: Sequence[Structure],
    cutoff: float,
    near_cutoff: float,
    neighbor_lists: Sequence[NeighborList] | None = None,
    search: EdgeSearch | None = None,
) -> AtomGraph:
    """The graph of a batch of structures, on the CPU.

    Args:
        structures: what is in the batch, at least one.
        cutoff: edges are strictly shorter (Å).
        near_cutoff: near edges, whose pairs make the three-body terms, are strictly shorter (Å).
        neighbor_lists: lists that were made before for these structures with this cutoff. Looking for edges anew is
            about as fast where numba is installed.
        search: what looks for edges otherwise, by default the fastest that is installed (`janus_graph.search`).

    Raises:
        ValueError: no structures, a cutoff that is not a positive number, or a near cutoff that is not above zero and
            at most the cutoff.
    """
    if not structures:
        raise ValueError("a batch needs at least one structure")
    require_cutoffs(cutoff, near_cutoff)
    order = atom_order(structures)
    if neighbor_lists:
        edges = _renamed(neighbor_lists, [len(structure) for structure in structures], order)
    else:
        edges = (search or preferred_search())(pack_in_order(structures, order), cutoff)
    return assemble_graph(structures, order, edges, cutoff, near_cutoff)


def require_cutoffs(cutoff: float, near_cutoff: float) -> None:
    """Refuses cutoffs that are not lengths, or in the wrong order."""
    require_cutoff(cutoff)
    if not 0 < near_cutoff <= cutoff:
        raise ValueError(f"near_cutoff is {near_cutoff} Å; it must be above 0 and at most cutoff = {cutoff} Å")


def pack_in_order(structures: Sequence[Structure], order: Int64[np.ndarray, "atoms"]) -> PackedStructures:
    """The structures for a search, whose edges then name atoms by their places in this order.

    Args:
        structures: at least one.
        order: which atoms to take, counted through all structures; any order that keeps elements and structures apart.
    """
    first_atom = np.zeros(len(structures) + 1, dtype=np.int64)
    np.cumsum([len(structure) for structure in structures], out=first_atom[1:])
    owner = np.repeat(np.arange(len(structures)), np.diff(first_atom))
    place = np.argsort(owner[order], kind="stable")
    return PackedStructures(
        positions=np.concatenate([structure.positions for structure in structures])[order[place]],
        cells=np.array([structure.cell for structure in structures]),
        periodic=np.array([structure.periodic for structure in structures]),
        first_atom=first_atom,
        place=place,
    )


def assemble_graph(
    structures: Sequence[Structure], order: Int64[np.ndarray, "atoms"], edges: Edges, cutoff: float, near_cutoff: float
) -> AtomGraph:
    """The graph of structures whose edges are known by the places of atoms in an order."""
    sizes = np.array([len(structure) for structure in structures])
    owner = np.repeat(np.arange(len(structures)), sizes)
    given_numbers = np.concatenate([structure.atomic_numbers for structure in structures])
    numbers = given_numbers[order]
    elements, first_of_element, atoms_per_element = np.unique(numbers, return_index=True, return_counts=True)
    edges_before = np.searchsorted(edges.index[0], np.append(first_of_element, len(numbers)))
    labels = np.array([(s.charge, s.spin, s.task) for s in structures], dtype=np.int64)
    return AtomGraph(
        positions=torch.from_numpy(np.concatenate([structure.positions for structure in structures])[order]),
        atomic_numbers=torch.from_numpy(numbers),
        structure_index=torch.from_numpy(owner[order]),
        input_index=torch.from_numpy(order),
        cells=torch.from_numpy(np.array([structure.cell for structure in structures])),
        periodic=torch.from_numpy(np.array([structure.periodic for structure in structures])),
        charges=torch.from_numpy(labels[:, 0].copy()),
        spins=torch.from_numpy(labels[:, 1].copy()),
        tasks=torch.from_numpy(labels[:, 2].copy()),
        composition=torch.from_numpy(_composition(given_numbers, owner, sizes)),
        edge_index=torch.from_numpy(edges.index),
        neighbour_numbers=torch.from_numpy(numbers.astype(np.int32)[edges.index[1]]),
        edge_shifts=torch.from_numpy(edges.shift.astype(np.float64)),
        elements=tuple(elements.tolist()),
        atoms_per_element=tuple(atoms_per_element.tolist()),
        edges_per_element=tuple(np.diff(edges_before).tolist()),
        around=edge_tables(edges.index[0], len(numbers)),
        near=near_tables(edges.index[0], edges.distance < near_cutoff, len(numbers)),
        cutoff=float(cutoff),
        near_cutoff=float(near_cutoff),
        reverse_edge=torch.from_numpy(edges.reverse.astype(np.int32)),
    )


def _renamed(lists: Sequence[NeighborList], sizes: Sequence[int], order: Int64[np.ndarray, "atoms"]) -> Edges:
    """The edges of lists, by the places of their atoms in an order."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    first = np.repeat(np.cumsum(sizes) - np.array(sizes), [len(listed) for listed in lists])
    index = np.stack([
        np.concatenate([listed.centre for listed in lists]) + first,
        np.concatenate([listed.neighbour for listed in lists]) + first,
    ])  # fmt: skip
    return sorted_edges(
        place[index],
        np.concatenate([listed.shift for listed in lists]),
        np.concatenate([listed.distance for listed in lists]),
    )


def _composition(numbers: np.ndarray, owner: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Fraction of each element in each structure, [structures, 119]."""
    columns = HIGHEST_ATOMIC_NUMBER + 1
    counts = np.bincount(owner * columns + numbers, minlength=len(sizes) * columns)
    fractions: np.ndarray = counts.reshape(len(sizes), columns) / sizes[:, None]
    return fractions
