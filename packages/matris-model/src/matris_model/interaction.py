"""One interaction block: near edges attend to each other, messages form, atoms gather them, experts update both."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from janus_moe import MoELayer, SwiGLU, SwiGLUExperts
from matris_model.attention import AtomAttention, ThreeBodyAttention
from matris_model.config import MatRISMoEConfig
from matris_model.embedding import RADIAL_GAIN
from matris_model.formulas import PLAIN, Formulas
from matris_model.geometry import Geometry
from matris_model.norm import RMSNorm


class InteractionBlock(nn.Module):
    """Pre-norm block over atom features h and edge features e. Every quantity is owned by its centre atom: the only
    thing it needs from elsewhere is one row of each neighbour, which the geometry's halo brings.

    Args:
        config: shape of the model.
        last: whether nobody reads the edges after this block, which then stay as they are.
        formulas: how its parts are computed.
    """

    def __init__(self, config: MatRISMoEConfig, last: bool = False, formulas: Formulas = PLAIN) -> None:
        super().__init__()
        width, edge_width = config.width, config.edge_width
        self.edge_norm = RMSNorm(edge_width, formulas)
        self.three_body = ThreeBodyAttention(edge_width, config.heads, config.angular_functions, formulas)
        self.atom_norm = RMSNorm(width, formulas)
        self.from_edge = nn.Linear(edge_width, width, bias=False)
        self.from_centre = nn.Linear(width, width, bias=False)
        self.from_neighbour = nn.Linear(width, width, bias=False)
        self.message_norm = RMSNorm(width, formulas)
        self.message_experts = self._experts(config, config.message_hidden, formulas)
        self.attention = AtomAttention(width, edge_width, config.heads, config.radial_functions, formulas)
        self.to_edge = None if last else nn.Linear(width, edge_width, bias=False)
        self.feature_norm = RMSNorm(width, formulas)
        self.feature_experts = self._experts(config, config.feature_hidden, formulas)

    @staticmethod
    def _experts(config: MatRISMoEConfig, shared_hidden: int, formulas: Formulas) -> MoELayer:
        return MoELayer(
            config.width,
            config.experts,
            config.top_k,
            config.expert_hidden,
            shared_hidden,
            product=formulas.product,
            activation=formulas.activation,
        )

    def reset_parameters(self, blocks: int, selection: Int64[Tensor, "elements top_k"]) -> None:
        """Weights that keep the size of features, outputs scaled down by √(2 · blocks), and each element's experts."""
        for moe in (self.message_experts, self.feature_experts):
            moe.router.start_from(selection)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
            elif isinstance(module, (RMSNorm, SwiGLU, SwiGLUExperts, ThreeBodyAttention)):
                module.reset_parameters()
        with torch.no_grad():
            self.attention.radial.weight *= RADIAL_GAIN
            for output in (
                self.three_body.out.weight,
                self.attention.out.weight,
                *([self.to_edge.weight] if self.to_edge is not None else []),
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
        near = geometry.near.edges
        change = self.three_body(self.edge_norm(edges.index_select(0, near)), geometry)
        edges = edges.index_add(0, near, change)

        normed = self.atom_norm(atoms)
        # Atoms are projected before they are gathered: there are some sixty edges to an atom.
        neighbour_rows = geometry.halo(self.from_neighbour(normed)).index_select(0, geometry.neighbour)
        centre_rows = self.from_centre(normed).index_select(0, geometry.centre)
        messages = self.from_edge(edges) + centre_rows + neighbour_rows
        messages = messages + self.message_experts(self.message_norm(messages), geometry.edge_groups)

        atoms = atoms + self.attention(normed, messages, geometry)
        if self.to_edge is not None:
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
