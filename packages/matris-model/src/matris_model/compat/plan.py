"""Integers of a batch: bonds that two directed edges share, and angles between near edges of one atom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from janus_graph import AtomGraph, near_pairs


@dataclass(frozen=True, eq=False)
class Plan:
    """Who is whose bond and angle.

    A bond is an edge together with its reverse, both of which are in the graph. An angle is an ordered pair of
    different near edges of one atom.

    Attributes:
        bond_of_edge: bond that a directed edge is a copy of.
        first: of each bond the edge that comes first in the graph.
        second: of each bond its other edge, the first one reversed.
        sign: 1 for edges that come first, −1 for their reverse.
        angle_centre: atom in the middle of each angle.
        angle_edges: the two edges of each angle; row 0 is the target, row 1 the source.
        angle_bonds: bonds of those edges.
    """

    bond_of_edge: Int64[Tensor, "edges"]
    first: Int64[Tensor, "bonds"]
    second: Int64[Tensor, "bonds"]
    sign: Float64[Tensor, "edges"]
    angle_centre: Int64[Tensor, "angles"]
    angle_edges: Int64[Tensor, "2 angles"]
    angle_bonds: Int64[Tensor, "2 angles"]


def make_plan(graph: AtomGraph) -> Plan:
    """Bonds and angles of a graph, as tensors on its device; worked out on the host.

    Raises:
        ValueError: a graph without reverse edges, as that of a structure that is cut over ranks.
    """
    if graph.reverse_edge is None:
        raise ValueError(
            "this graph does not say where its edges are in the other direction, as a part of a structure has no "
            "reverse of every edge; this model shares features between both directions, so give it whole structures, "
            "as build_graph makes them"
        )
    reverse = _on_host(graph.reverse_edge)
    edge = np.arange(graph.edges)
    first = np.flatnonzero(edge < reverse)
    bond_of_edge = np.empty(graph.edges, dtype=np.int64)
    bond_of_edge[first] = np.arange(len(first))
    bond_of_edge[reverse[first]] = np.arange(len(first))
    near = np.zeros(graph.edges, dtype=bool)
    near[_on_host(graph.near.edges)] = True
    centre = _on_host(graph.edge_index)[0]
    angle_edges = near_pairs(centre, near)

    def on_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(graph.device)

    return Plan(
        bond_of_edge=on_device(bond_of_edge),
        first=on_device(first),
        second=on_device(reverse[first]),
        sign=on_device(np.where(edge < reverse, 1.0, -1.0)),
        angle_centre=on_device(centre[angle_edges[0]]),
        angle_edges=on_device(angle_edges),
        angle_bonds=on_device(bond_of_edge[angle_edges]),
    )


def _on_host(tensor: Tensor) -> Int64[np.ndarray, "..."]:
    """Whole numbers on the host. Works inside torch.func's transforms too, where `tensor.numpy()` does not."""
    array = np.empty(tensor.shape, dtype=np.int64)
    torch.from_numpy(array).copy_(tensor)
    return array
