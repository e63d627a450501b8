"""What all blocks of one forward pass share: index plans and functions of distances and angles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from janus_graph import AtomGraph, EdgeTables, Halo, edge_vectors
from janus_moe import ElementGroups, GroupRows, group_rows
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
    """Everything about a batch that blocks read and do not change.

    Attributes:
        centre: centre of each edge.
        neighbour: neighbour of each edge, in the rows that the halo gives.
        envelope: envelope of each edge at the cutoff.
        radial: radial basis of each edge.
        directions: unit vector of each edge.
        around: where each atom's edges are.
        around_tables: functions of their lengths, table by table; none where nobody reads tables.
        near: where each atom's near edges are.
        near_rows: unit vector of each near edge and its envelope at the near cutoff.
        near_tables: functions of their lengths and angles, table by table; none where nobody reads tables.
        atom_groups: atoms by element.
        edge_groups: edges by the element of their centre.
        halo: brings the rows of neighbours.
    """

    centre: Int64[Tensor, "edges"]
    neighbour: Int64[Tensor, "edges"]
    envelope: Float[Tensor, "edges"]
    radial: Float[Tensor, "edges functions"]
    directions: Float[Tensor, "edges 3"]
    around: EdgeTables
    around_tables: tuple[EdgeTable, ...]
    near: EdgeTables
    near_rows: Float[Tensor, "near 4"]
    near_tables: tuple[NearTable, ...]
    atom_groups: ElementGroups
    edge_groups: ElementGroups
    halo: Halo


def graph_geometry(
    graph: AtomGraph,
    config: MatRISMoEConfig,
    dtype: torch.dtype,
    halo: Halo,
    tables: bool = True,
    group: GroupRows = group_rows,
) -> Geometry:
    """Index plans and basis functions of a graph, differentiable in its positions and cells.

    Vectors are taken in float64 and cast after, so that large coordinates cost no digits.

    Args:
        graph: the graph.
        config: cutoffs and sizes of bases.
        dtype: precision of the basis functions.
        halo: brings the rows of neighbours.
        tables: whether to make the dense tables.
        group: groups atoms and edges by element, for the experts.
    """
    vectors = edge_vectors(graph, halo).to(dtype)
    distances = vectors.square().sum(dim=1).sqrt()
    centre, neighbour = graph.edge_index
    near_distances = distances.index_select(0, graph.near.edges)
    units = vectors.index_select(0, graph.near.edges) / near_distances[:, None]
    near_rows = torch.cat([units, envelope(near_distances, config.near_cutoff)[:, None]], dim=1)
    edge_envelope = envelope(distances, config.cutoff)
    radial = radial_basis(distances, config.cutoff, config.radial_functions)
    return Geometry(
        centre=centre,
        neighbour=neighbour,
        envelope=edge_envelope,
        radial=radial,
        directions=vectors / distances[:, None],
        around=graph.around,
        around_tables=edge_tables(graph.around, radial, edge_envelope) if tables else (),
        near=graph.near,
        near_rows=near_rows,
        near_tables=near_tables(graph.near, near_rows, config.angular_functions) if tables else (),
        atom_groups=group(graph.elements, graph.atoms_per_element, graph.device),
        edge_groups=group(graph.elements, graph.edges_per_element, graph.device),
        halo=halo,
    )


def edge_tables(
    around: EdgeTables, radial: Float[Tensor, "edges functions"], edge_envelope: Float[Tensor, "edges"]
) -> tuple[EdgeTable, ...]:
    """Functions of the lengths of each atom's edges, laid out as tables."""
    parts = around.spread(torch.cat([radial, edge_envelope[:, None]], dim=1))
    return tuple(EdgeTable(part[..., -1], part[..., :-1]) for part in parts)


def near_tables(near: EdgeTables, near_rows: Float[Tensor, "near 4"], functions: int) -> tuple[NearTable, ...]:
    """Functions of the lengths of each atom's near edges and of the angles between them, laid out as tables."""
    return tuple(_near_table(part, functions) for part in near.spread(near_rows))


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
