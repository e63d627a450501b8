"""What all blocks of one forward pass share: index plans and functions of distances and angles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from janus_graph import AtomGraph, Halo, edge_vectors
from janus_moe import ElementGroups, group_rows
from matris_model.basis import envelope, legendre, radial_basis
from matris_model.config import MatRISMoEConfig


@dataclass(frozen=True, eq=False)
class NearBlock:
    """Three-body geometry of the atoms of one dense table.

    Attributes:
        table: near edges of each atom; one past the last stands for nothing.
        envelope: envelope of each near edge at the near cutoff, zero for nothing.
        angular: Legendre polynomials of the cosine between edges p and q, [atoms, functions, width · width].
        weight: envelope of edge q where p ≠ q, else zero.
    """

    table: Int64[Tensor, "atoms width"]
    envelope: Float[Tensor, "atoms width"]
    angular: Float[Tensor, "atoms functions pairs"]
    weight: Float[Tensor, "atoms width width"]


@dataclass(frozen=True, eq=False)
class Geometry:
    """Everything about a batch that blocks read and do not change."""

    centre: Int64[Tensor, "edges"]
    neighbour: Int64[Tensor, "edges"]
    near_edges: Int64[Tensor, "near"]
    near_slots: Int64[Tensor, "near"]
    near_blocks: tuple[NearBlock, ...]
    envelope: Float[Tensor, "edges"]
    radial: Float[Tensor, "edges functions"]
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
    near = graph.near.edges
    near_distances = distances.index_select(0, near)
    units = vectors.index_select(0, near) / near_distances[:, None]
    near_envelope = envelope(near_distances, config.near_cutoff)
    return Geometry(
        centre=centre,
        neighbour=neighbour,
        near_edges=near,
        near_slots=graph.near.slots,
        near_blocks=tuple(
            _near_block(table, padded(units), padded(near_envelope), config.angular_functions)
            for table in graph.near.tables
        ),
        envelope=envelope(distances, config.cutoff),
        radial=radial_basis(distances, config.cutoff, config.radial_functions),
        atom_groups=group_rows(graph.elements, graph.atoms_per_element, graph.device),
        edge_groups=group_rows(graph.elements, graph.edges_per_element, graph.device),
        halo=halo,
    )


def padded(rows: Tensor) -> Tensor:
    """The rows and one of zeros, which the padding of near tables points at."""
    return torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])


def take_rows(rows: Tensor, table: Int64[Tensor, "atoms width"]) -> Tensor:
    """`rows[table]`, whose derivative adds rows up fast (that of plain indexing does not, on CPU)."""
    return rows.index_select(0, table.flatten()).unflatten(0, table.shape)


def _near_block(table: Tensor, units: Tensor, near_envelope: Tensor, functions: int) -> NearBlock:
    directions, weights = take_rows(units, table), take_rows(near_envelope, table)
    angular = legendre(directions @ directions.transpose(1, 2), functions)
    other: Bool[Tensor, "width width"] = ~torch.eye(table.shape[1], dtype=torch.bool, device=table.device)
    return NearBlock(
        table=table,
        envelope=weights,
        angular=torch.stack(angular, dim=1).flatten(2),
        weight=weights[:, None, :] * other.to(weights.dtype),
    )
