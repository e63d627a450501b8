"""A batch's graph as the parts that ranks hold: owned atoms with all their edges, and who sends which rows to whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64

from janus_graph.graph import AtomGraph
from janus_graph.tables import edge_tables, near_tables


@dataclass(frozen=True, eq=False)
class GraphPart:
    """What one rank holds of a batch.

    Attributes:
        graph: owned atoms in the order of the whole graph, and all edges centred on them. Neighbours that other ranks
            own are called by the places after the owned atoms, in the order of `ghosts`. All structures of the batch
            are there, also those of which this rank owns nothing, so that sums over structures line up on all ranks;
            `input_index` is the place in the batch as it was given.
        owned: places of the owned atoms in the whole graph.
        ghosts: places of neighbours that others own, by owner and then place; each is there once, and nothing else is.
        send_rows: for each rank, which owned atoms it has as ghosts, in the order in which it has them.
        receive_counts: for each rank, how many of its atoms are ghosts here.
    """

    graph: AtomGraph
    owned: Int64[np.ndarray, "owned"]
    ghosts: Int64[np.ndarray, "ghosts"]
    send_rows: tuple[Int64[np.ndarray, "some"], ...]
    receive_counts: tuple[int, ...]


def graph_part(graph: AtomGraph, owner: Int64[np.ndarray, "atoms"], part: int, parts: int) -> GraphPart:
    """One part of a whole graph.

    Every edge has its reverse, so the atoms that another part needs are those with a neighbour there: a part's own
    edges say what it sends as well as what it gets, and all parts agree without asking.

    Args:
        graph: a whole graph, on the CPU.
        owner: part that owns each atom of the graph (`partition_atoms` gives it in the order of the structures;
            `owner[graph.input_index]` is in the graph's).
        part: which part to make.
        parts: how many there are.

    Raises:
        ValueError: a graph that is a part already, owners for other atoms, or a part that does not exist.
    """
    owner = np.asarray(owner, dtype=np.int64)
    centre, neighbour = graph.edge_index.numpy()
    if len(neighbour) and neighbour.max() >= graph.atoms:
        raise ValueError("this graph has ghost atoms, so it is a part of a graph; cut the whole one")
    if owner.shape != (graph.atoms,):
        raise ValueError(f"the graph has {graph.atoms} atoms, but owner has shape {owner.shape}; give one part an atom")
    if not 0 <= part < parts or (len(owner) and not 0 <= owner.min() <= owner.max() < parts):
        raise ValueError(f"parts are 0 to {parts - 1}; asked for {part} of owners {owner.min()} to {owner.max()}")
    owned = np.flatnonzero(owner == part)
    kept = np.flatnonzero(owner[centre] == part)
    centre, neighbour = centre[kept], neighbour[kept]
    place = np.empty(graph.atoms, dtype=np.int64)
    place[owned] = np.arange(len(owned))
    abroad = owner[neighbour]
    ghosts = np.unique(neighbour[abroad != part])
    ghosts = ghosts[np.argsort(owner[ghosts], kind="stable")]
    place[ghosts] = len(owned) + np.arange(len(ghosts))
    # Who needs which of the owned atoms, as one number each: sorting pairs takes many times as long.
    needed = np.unique((abroad * graph.atoms + place[centre])[abroad != part])
    receiver, row = needed // graph.atoms, needed % graph.atoms
    return GraphPart(
        graph=_subgraph(graph, owned, kept, np.stack([place[centre], place[neighbour]])),
        owned=owned,
        ghosts=ghosts,
        send_rows=tuple(row[receiver == other] for other in range(parts)),
        receive_counts=tuple(np.bincount(owner[ghosts], minlength=parts).tolist()),
    )


def _subgraph(
    graph: AtomGraph,
    owned: Int64[np.ndarray, "owned"],
    kept: Int64[np.ndarray, "edges"],
    edge_index: Int64[np.ndarray, "2 edges"],
) -> AtomGraph:
    """Owned atoms and kept edges, whose ends are called by their places in the part."""
    numbers = graph.atomic_numbers.numpy()[owned]
    elements, first, atoms_per_element = np.unique(numbers, return_index=True, return_counts=True)
    edges_before = np.searchsorted(edge_index[0], np.append(first, len(owned)))
    near = np.zeros(graph.edges, dtype=bool)
    near[graph.near.edges.numpy()] = True
    rows, edges = torch.from_numpy(owned), torch.from_numpy(kept)
    return graph.replace(
        positions=graph.positions[rows],
        atomic_numbers=graph.atomic_numbers[rows],
        structure_index=graph.structure_index[rows],
        input_index=graph.input_index[rows],
        edge_index=torch.from_numpy(edge_index),
        neighbour_numbers=graph.neighbour_numbers[edges],
        edge_shifts=graph.edge_shifts[edges],
        elements=tuple(elements.tolist()),
        atoms_per_element=tuple(atoms_per_element.tolist()),
        edges_per_element=tuple(np.diff(edges_before).tolist()),
        around=edge_tables(edge_index[0], len(owned)),
        near=near_tables(edge_index[0], near[kept], len(owned)),
    )
