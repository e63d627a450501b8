"""One interaction block: near edges attend to each other, messages form, atoms gather them, experts update both."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from janus_moe import MoELayer, SwiGLU, SwiGLUExperts
from matris_model.attention import AtomAttention, ThreeBodyAttention
from matris_model.config import MatRISMoEConfig
from matris_model.embedding import RADIAL_GAIN
from matris_model.geometry import Geometry

NORM_EPS = 1e-5


class InteractionBlock(nn.Module):
    """Pre-norm block over atom features h and edge features e. Every quantity is owned by its centre atom: the only
    thing it needs from elsewhere is one row of each neighbour, which the geometry's halo brings.
    """

    def __init__(self, config: MatRISMoEConfig) -> None:
        super().__init__()
        width, edge_width = config.width, config.edge_width
        self.edge_norm = nn.RMSNorm(edge_width, eps=NORM_EPS)
        self.three_body = ThreeBodyAttention(edge_width, config.heads, config.angular_functions)
        self.atom_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.from_edge = nn.Linear(edge_width, width, bias=False)
        self.from_centre = nn.Linear(width, width, bias=False)
        self.from_neighbour = nn.Linear(width, width, bias=False)
        self.message_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.message_experts = MoELayer(
            width, config.experts, config.top_k, config.expert_hidden, config.message_hidden
        )
        self.attention = AtomAttention(width, edge_width, config.heads, config.radial_functions)
        self.to_edge = nn.Linear(width, edge_width, bias=False)
        self.feature_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.feature_experts = MoELayer(
            width, config.experts, config.top_k, config.expert_hidden, config.feature_hidden
        )

    def reset_parameters(self, blocks: int) -> None:
        """Weights that keep the size of features, and outputs scaled down by √(2 · blocks)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
            elif isinstance(module, (SwiGLU, SwiGLUExperts, ThreeBodyAttention)):
                module.reset_parameters()
        with torch.no_grad():
            self.attention.radial.weight *= RADIAL_GAIN
            for output in (
                self.three_body.out.weight,
                self.attention.out.weight,
                self.to_edge.weight,
                *(
                    w
                    for moe in (self.message_experts, self.feature_experts)
                    for w in (moe.shared.down, moe.experts.down)
                ),
            ):
                output /= math.sqrt(2 * blocks)
            # Three projections add up in a message.
            for projection in (self.from_edge, self.from_centre, self.from_neighbour):
                projection.weight /= math.sqrt(3)

    def forward(
        self, atoms: Float[Tensor, "atoms width"], edges: Float[Tensor, "edges edge_width"], geometry: Geometry
    ) -> tuple[Float[Tensor, "atoms width"], Float[Tensor, "edges edge_width"]]:
        """Atom and edge features after the block."""
        near = geometry.near_edges
        change = self.three_body(self.edge_norm(edges.index_select(0, near)), geometry)
        edges = edges.index_add(0, near, change)

        normed = self.atom_norm(atoms)
        # Atoms are projected before they are gathered: there are some sixty edges to an atom.
        neighbour_rows = geometry.halo(self.from_neighbour(normed)).index_select(0, geometry.neighbour)
        centre_rows = self.from_centre(normed).index_select(0, geometry.centre)
        messages = self.from_edge(edges) + centre_rows + neighbour_rows
        messages = messages + self.message_experts(self.message_norm(messages), geometry.edge_groups)

        atoms = atoms + self.attention(normed, messages, geometry)
        edges = edges + geometry.envelope[:, None] * self.to_edge(messages)
        atoms = atoms + self.feature_experts(self.feature_norm(atoms), geometry.atom_groups)
        return atoms, edges


class BlockRunner(Protocol):
    """Runs a block on features: just calls it, or recomputes it in the backward pass, or carries tangents along."""

    def __call__(self, block: nn.Module, atoms: Tensor, edges: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Atom and edge features after the block."""
        ...


def call_block(block: nn.Module, atoms: Tensor, edges: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Runs a block by calling it."""
    after: tuple[Tensor, Tensor] = block(atoms, edges, geometry)
    return after


def checkpoint_block(block: nn.Module, atoms: Tensor, edges: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Runs a block and keeps only what goes in; what is inside is computed again when a derivative needs it."""
    from torch.utils.checkpoint import checkpoint

    after: tuple[Tensor, Tensor] = checkpoint(block, atoms, edges, geometry, use_reentrant=False)
    return after
