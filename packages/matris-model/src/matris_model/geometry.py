"""What all blocks of one forward pass share: index plans and functions of distances and angles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from janus_graph import AtomGraph, EdgeTables, Halo, edge_vectors
from janus_moe import ElementGroups, group_rows
from matris_model.basis import envelope, legendre, radial_basis
from matris_model.config import MatRISMoEConfig


@dataclass(frozen=True, eq=False)
class NearTable:
    """Three-body geometry of the atoms of one table of near edges.

    Attributes:
        envelope: envelope of each near edge at the near cutoff, zero for nothing.
        envelope_of_other: envelope of edge q where p ≠ q, else zero.
        angular: Legendre polynomials of the cosine between edges p and q, [atoms, functions, width · width].
    """

    envelope: Float[Tensor, "atoms width"]
    envelope_of_other: Float[Tensor, "atoms width width"]
    angular: Float[Tensor, "atoms functions pairs"]


@dataclass(frozen=True, eq=False)
class EdgeTable:
    """What the atoms of one table know of the lengths of their edges.

    Attributes:
        envelope: envelope of each edge at the cutoff, zero for nothing.
        radial: radial basis of each edge, zero for nothing.
    """

    envelope: Float[Tensor, "atoms width"]
    radial: Float[Tensor, "atoms width functions"]


@dataclass(frozen=True, eq=False)
class Geometry:
    """Everything about a batch that blocks read and do not change."""

    centre: Int64[Tensor, "edges"]
    neighbour: Int64[Tensor, "edges"]
    envelope: Float[Tensor, "edges"]
    radial: Float[Tensor, "edges functions"]
    around: EdgeTables
    around_tables: tuple[EdgeTable, ...]
    near: EdgeTables
    near_tables: tuple[NearTable, ...]
    atom_groups: ElementGroups
    edge_groups: ElementGroups
    halo: Halo


def graph_geometry(graph: AtomGraph, config: MatRISMoEConfig, dtype: torch.dtype, halo: Halo) -> Geometry:
    """Index plans and basis functions of a graph, differentiable in its positions and cells.

    Vectors are taken in float64 and cast after, so that large coordinates cost no digits.
    """
    vectors = edge_vectors(graph, halo).to(dtype)
    distances = vectors.square().sum(dim=1).sqrt()
    centre, neighbour = graph.edge_index
    near_distances = distances.index_select(0, graph.near.edges)
    units = vectors.index_select(0, graph.near.edges) / near_distances[:, None]
    near_parts = graph.near.spread(torch.cat([units, envelope(near_distances, config.near_cutoff)[:, None]], dim=1))
    edge_envelope = envelope(distances, config.cutoff)
    radial = radial_basis(distances, config.cutoff, config.radial_functions)
    around_parts = graph.around.spread(torch.cat([radial, edge_envelope[:, None]], dim=1))
    return Geometry(
        centre=centre,
        neighbour=neighbour,
        envelope=edge_envelope,
        radial=radial,
        around=graph.around,
        around_tables=tuple(EdgeTable(part[..., -1], part[..., :-1]) for part in around_parts),
        near=graph.near,
        near_tables=tuple(_near_table(part, config.angular_functions) for part in near_parts),
        atom_groups=group_rows(graph.elements, graph.atoms_per_element, graph.device),
        edge_groups=group_rows(graph.elements, graph.edges_per_element, graph.device),
        halo=halo,
    )


def _near_table(units_and_envelope: Float[Tensor, "atoms width 4"], functions: int) -> NearTable:
    units, near_envelope = units_and_envelope[..., :3], units_and_envelope[..., 3]
    angular = legendre(units @ units.transpose(1, 2), functions)
    width = units.shape[1]
    other: Bool[Tensor, "width width"] = ~torch.eye(width, dtype=torch.bool, device=units.device)
    return NearTable(
        envelope=near_envelope,
        envelope_of_other=near_envelope[:, None, :] * other.to(units.dtype),
        angular=torch.stack(angular, dim=1).flatten(2),
    )
