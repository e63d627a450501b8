"""From structures to the graph of a batch. Everything here is integers on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64

from janus_graph.graph import AtomGraph
from janus_graph.neighbors import NeighborList, neighbor_list
from janus_graph.structure import HIGHEST_ATOMIC_NUMBER, Structure
from janus_graph.tables import edge_tables, near_tables


def build_graph(
    structures: Sequence[Structure],
    cutoff: float,
    near_cutoff: float,
    neighbor_lists: Sequence[NeighborList] | None = None,
) -> AtomGraph:
    """The graph of a batch of structures, on the CPU.

    Args:
        structures: what is in the batch, at least one.
        cutoff: edges are strictly shorter (Å).
        near_cutoff: near edges, whose pairs make the three-body terms, are strictly shorter (Å).
        neighbor_lists: lists that were made before for these structures with this cutoff.

    Raises:
        ValueError: no structures, or a near cutoff that is not above zero and at most the cutoff.
    """
    if not structures:
        raise ValueError("a batch needs at least one structure")
    if not 0 < near_cutoff <= cutoff:
        raise ValueError(f"near_cutoff is {near_cutoff} Å; it must be above 0 and at most cutoff = {cutoff} Å")
    lists = neighbor_lists or [neighbor_list(structure, cutoff) for structure in structures]
    sizes = np.array([len(structure) for structure in structures])
    owner = np.repeat(np.arange(len(structures)), sizes)
    given_numbers = np.concatenate([structure.atomic_numbers for structure in structures])

    input_index = np.argsort(given_numbers, kind="stable")
    place = np.empty_like(input_index)
    place[input_index] = np.arange(len(input_index))

    edge_owner = np.repeat(np.arange(len(structures)), [len(edges) for edges in lists])
    first_atom = np.cumsum(sizes) - sizes
    given_centre = np.concatenate([edges.centre for edges in lists]) + first_atom[edge_owner]
    given_neighbour = np.concatenate([edges.neighbour for edges in lists]) + first_atom[edge_owner]
    edge_order, edge_counts = _edges_by_new_centre(given_centre, input_index)
    centre = place[given_centre[edge_order]]
    neighbour = place[given_neighbour[edge_order]]
    distance = np.concatenate([edges.distance for edges in lists])[edge_order]
    shift = np.concatenate([edges.shift for edges in lists])[edge_order]
    positions = np.concatenate([structure.positions for structure in structures])[input_index]
    elements, first_of_element, atoms_per_element = np.unique(
        given_numbers[input_index], return_index=True, return_counts=True
    )
    labels = np.array([(s.charge, s.spin, s.task) for s in structures], dtype=np.int64)
    return AtomGraph(
        positions=torch.from_numpy(positions),
        atomic_numbers=torch.from_numpy(given_numbers[input_index]),
        structure_index=torch.from_numpy(owner[input_index]),
        input_index=torch.from_numpy(input_index),
        cells=torch.from_numpy(np.stack([structure.cell for structure in structures])),
        periodic=torch.from_numpy(np.stack([structure.periodic for structure in structures])),
        charges=torch.from_numpy(labels[:, 0].copy()),
        spins=torch.from_numpy(labels[:, 1].copy()),
        tasks=torch.from_numpy(labels[:, 2].copy()),
        composition=torch.from_numpy(_composition(given_numbers, owner, sizes)),
        edge_index=torch.from_numpy(np.stack([centre, neighbour])),
        edge_shifts=torch.from_numpy(shift.astype(np.float64)),
        elements=tuple(elements.tolist()),
        atoms_per_element=tuple(atoms_per_element.tolist()),
        edges_per_element=tuple(np.add.reduceat(edge_counts, first_of_element).tolist()),
        around=edge_tables(centre, len(input_index)),
        near=near_tables(centre, distance < near_cutoff, len(input_index)),
        cutoff=float(cutoff),
        near_cutoff=float(near_cutoff),
    )


def _edges_by_new_centre(
    given_centre: Int64[np.ndarray, "edges"], input_index: Int64[np.ndarray, "atoms"]
) -> tuple[Int64[np.ndarray, "edges"], Int64[np.ndarray, "atoms"]]:
    """Which edges to take, in order, once the atoms are reordered; and how many each atom has then."""
    given_counts = np.bincount(given_centre, minlength=len(input_index))
    given_first = np.cumsum(given_counts) - given_counts
    counts = given_counts[input_index]
    within = np.arange(len(given_centre)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(given_first[input_index], counts) + within, counts


def _composition(numbers: np.ndarray, owner: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Fraction of each element in each structure, [structures, 119]."""
    columns = HIGHEST_ATOMIC_NUMBER + 1
    counts = np.bincount(owner * columns + numbers, minlength=len(sizes) * columns)
    fractions: np.ndarray = counts.reshape(len(sizes), columns) / sizes[:, None]
    return fractions
