"""Periodic atom graphs: neighbour lists, three-body pairs, batches, and exact derivatives of an energy."""

from janus_graph.batch import build_graph
from janus_graph.cache import GraphCache
from janus_graph.derivatives import PROPERTIES, EnergyFunction, Potential, Properties, conservative_properties
from janus_graph.geometry import Halo, edge_vectors, no_halo, strained, volumes
from janus_graph.graph import AtomGraph
from janus_graph.near import near_pairs
from janus_graph.neighbors import NeighborList, neighbor_list, neighbor_lists
from janus_graph.structure import HIGHEST_ATOMIC_NUMBER, Structure, structures_end_to_end
from janus_graph.tables import EdgeTables, edge_tables, near_tables

__all__ = [
    "HIGHEST_ATOMIC_NUMBER",
    "PROPERTIES",
    "AtomGraph",
    "EdgeTables",
    "EnergyFunction",
    "GraphCache",
    "Halo",
    "NeighborList",
    "Potential",
    "Properties",
    "Structure",
    "build_graph",
    "conservative_properties",
    "edge_tables",
    "edge_vectors",
    "near_pairs",
    "near_tables",
    "neighbor_list",
    "neighbor_lists",
    "no_halo",
    "strained",
    "structures_end_to_end",
    "volumes",
]
