"""What distances and volumes a graph has, as differentiable functions of positions and strain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float64
from torch import Tensor

from janus_graph.graph import AtomGraph

Halo: TypeAlias = Callable[[Tensor], Tensor]
"""Rows of owned atoms in, the same rows followed by the rows of ghost atoms out."""


def no_halo(rows: Tensor) -> Tensor:
    """The halo of a graph that is all here: no ghost atoms."""
    return rows


def edge_vectors(graph: AtomGraph, halo: Halo = no_halo) -> Float64[Tensor, "edges 3"]:
    """Vectors from the centre of each edge to its neighbour, Å, differentiable in positions and cells."""
    centre, neighbour = graph.edge_index
    cells = graph.cells.index_select(0, graph.structure_index).index_select(0, centre)
    translation = torch.einsum("es,esx->ex", graph.edge_shifts, cells)
    return halo(graph.positions).index_select(0, neighbour) - graph.positions.index_select(0, centre) + translation


def strained(graph: AtomGraph, strain: Float64[Tensor, "structures 3 3"]) -> AtomGraph:
    """The graph with each structure deformed by the symmetric part of its strain: x → x(1 + ε), h → h(1 + ε)."""
    symmetric = (strain + strain.transpose(1, 2)) / 2
    per_atom = symmetric.index_select(0, graph.structure_index)
    positions = graph.positions + torch.einsum("ax,axy->ay", graph.positions, per_atom)
    return graph.replace(positions=positions, cells=graph.cells + graph.cells @ symmetric)


def stress_of(graph: AtomGraph, virial: Float64[Tensor, "structures 3 3"]) -> Float64[Tensor, "structures 3 3"]:
    """The derivative of energies in strains over volumes, eV/Å³; zero for structures that have none."""
    volume = volumes(graph)
    # Where there is no volume the derivative is dropped, not divided: 0 / 0 would poison a masked loss.
    return virial * torch.where(volume > 0, 1 / volume.clamp(min=1e-300), 0.0)[:, None, None]


def volumes(graph: AtomGraph) -> Float64[Tensor, "structures"]:
    """Volume of each cell in Å³, positive for left-handed cells too; zero where a direction does not repeat."""
    return torch.linalg.det(graph.cells).abs() * graph.periodic.all(dim=1)
