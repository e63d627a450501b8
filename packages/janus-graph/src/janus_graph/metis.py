"""Partition by METIS: for porous frameworks, which no plane cuts well, it needs about half the neighbours elsewhere.

Everywhere else `partition_atoms` is as good to a few percent, and ten times as fast. Importing this imports pymetis
(extra `metis`).
"""

from __future__ import annotations

import numpy as np
import pymetis
from jaxtyping import Int64

from janus_graph.graph import AtomGraph

# METIS holds weights in 32 bits, and adds them up.
_LARGEST_TOTAL = 2**30


def partition_by_metis(graph: AtomGraph, work: Int64[np.ndarray, "atoms"], parts: int) -> Int64[np.ndarray, "atoms"]:
    """The part that owns each atom of a whole graph, in the graph's order; the same on every rank.

    Work is even to METIS's tolerance of 3 %. Structures are cut like one graph, whole or not as it comes.

    Args:
        graph: a whole graph, on the CPU.
        work: cost of each atom (`atom_work`).
        parts: how many to make; some stay empty where there are too few atoms.

    Raises:
        ValueError: no part.
    """
    if parts < 1:
        raise ValueError(f"a batch cannot be cut into {parts} parts; there must be at least one")
    if parts == 1 or graph.atoms <= 1:
        return np.zeros(graph.atoms, dtype=np.int64)
    centre, neighbour = graph.edge_index.numpy()
    # Once for each pair of atoms, however many of their images are neighbours, and nothing to itself.
    pairs = np.unique((centre * graph.atoms + neighbour)[centre != neighbour])
    starts = np.searchsorted(pairs, np.arange(graph.atoms + 1) * graph.atoms)
    scale = max(1, -(-int(work.sum()) // _LARGEST_TOTAL))
    adjacency = pymetis.CSRAdjacency(adj_starts=starts.tolist(), adjacent=(pairs % graph.atoms).tolist())
    weights = np.maximum(work // scale, 1).tolist()
    _, owner = pymetis.part_graph(parts, adjacency=adjacency, vweights=weights)
    return np.array(owner, dtype=np.int64)
