"""Naive oracles and laws: what any neighbour list and any conservative potential must fulfil.

Nothing here needs a test framework: a broken law raises `AssertionError` and says where.
"""

from janus_graph.testing.derivatives import check_conservative
from janus_graph.testing.neighbor_lists import (
    NEIGHBOR_LIST_LAWS,
    NeighborListFunction,
    NeighborListLaw,
    brute_force_neighbor_list,
    check_neighbor_list,
)
from janus_graph.testing.structures import sample_structures

__all__ = [
    "NEIGHBOR_LIST_LAWS",
    "NeighborListFunction",
    "NeighborListLaw",
    "brute_force_neighbor_list",
    "check_conservative",
    "check_neighbor_list",
    "sample_structures",
]
