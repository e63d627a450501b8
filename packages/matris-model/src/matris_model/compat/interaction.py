"""Attention and refinement on the atom graph and the line graph, with the published names of parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from matris_model.compat.config import MatRISConfig
from matris_model.compat.geometry import Geometry, Messages
from matris_model.compat.layers import MLP, Part, make_update, softmax_sums


class AttentionLayer(nn.Module):
    """Messages weighted by a softmax over those with the same target, and over those with the same source.

    Weights come from edge features alone, one for each channel, and know no envelope.
    """

    def __init__(self, node_width: int, edge_width: int, config: MatRISConfig) -> None:
        super().__init__()
        self.node_res_weight = nn.Parameter(torch.ones(1, node_width))
        self.edge_res_weight = nn.Parameter(torch.ones(1, edge_width))
        self.source_weight_linear = nn.Linear(edge_width, edge_width, bias=False)
        self.target_weight_linear = nn.Linear(edge_width, edge_width, bias=False)
        self.node_nonlinear_update = make_update(node_width + 2 * edge_width, node_width, node_width, config)
        self.edge_nonlinear_update = make_update(edge_width + 2 * node_width, node_width, edge_width, config)

    def forward(
        self, nodes: Float[Tensor, "nodes node_width"], edges: Float[Tensor, "edges edge_width"], graph: Messages
    ) -> tuple[Float[Tensor, "nodes node_width"], Float[Tensor, "edges edge_width"]]:
        """Node and edge features after the layer."""
        messages = self.edge_nonlinear_update([(edges, graph.rows), (nodes, graph.target), (nodes, graph.source)])
        weights = torch.cat([self.target_weight_linear.weight, self.source_weight_linear.weight])
        to_target, to_source = graph.spread(linear(edges, weights)).chunk(2, dim=1)
        gathered: list[Part] = [
            (nodes, None),
            (softmax_sums(to_target, messages, graph.target, graph.nodes), None),
            (softmax_sums(to_source, messages, graph.source, graph.nodes), None),
        ]
        return (
            self.node_nonlinear_update(gathered) + self.node_res_weight * nodes,
            graph.mean_of_copies(messages) + self.edge_res_weight * edges,
        )


class RefinementLayer(nn.Module):
    """Messages under a learnable envelope add up at their target.

    Args:
        node_width: features of a node.
        edge_width: features of an edge.
        inputs: features that messages are made from.
        config: of the model.
        smooth_edges: whether the envelope acts on what updates the edges too.
    """

    def __init__(self, node_width: int, edge_width: int, inputs: int, config: MatRISConfig, smooth_edges: bool) -> None:
        super().__init__()
        self.smooth_edges = smooth_edges
        self.node_res_weight = nn.Parameter(torch.ones(1, node_width))
        self.edge_res_weight = nn.Parameter(torch.ones(1, edge_width))
        self.edge_nonlinear_update = make_update(inputs, node_width, edge_width, config, config.dropout)
        self.node_FFN = MLP(edge_width, (node_width,), node_width, bias=config.use_bias)
        self.edge_FFN = MLP(edge_width, (edge_width,), edge_width, bias=config.use_bias)
        self.learnable_envelope = nn.Linear(config.num_radial, edge_width, bias=False)

    def forward(
        self,
        nodes: Float[Tensor, "nodes node_width"],
        edges: Float[Tensor, "edges edge_width"],
        graph: Messages,
        parts: list[Part],
        envelope: Float[Tensor, "messages edge_width"],
    ) -> tuple[Float[Tensor, "nodes node_width"], Float[Tensor, "edges edge_width"]]:
        """Node and edge features after the layer.

        Args:
            nodes: features of the nodes.
            edges: features of the edges.
            graph: who sends to whom.
            parts: what messages are made from.
            envelope: weight of each message, channel by channel.
        """
        messages = self.edge_nonlinear_update(parts)
        weighted = messages * envelope
        sums = weighted.new_zeros(graph.nodes, weighted.shape[1]).index_add(0, graph.target, weighted)
        change = self.edge_FFN(weighted if self.smooth_edges else messages)
        return (
            self.node_FFN(sums) + self.node_res_weight * nodes,
            graph.mean_of_copies(change) + self.edge_res_weight * edges,
        )


class InteractionBlock(nn.Module):
    """Line attention, atom attention, line refinement, atom refinement."""

    def __init__(self, config: MatRISConfig) -> None:
        super().__init__()
        atom, bond, angle = config.node_feat_dim, config.edge_feat_dim, config.three_body_feat_dim
        self.attn_block_atom_graph = AttentionLayer(atom, bond, config)
        self.attn_block_line_graph = AttentionLayer(bond, angle, config)
        self.refine_block_atom_graph = RefinementLayer(
            atom, bond, bond + 2 * atom, config, smooth_edges=config.use_smoothed_for_delta_edge
        )
        self.refine_block_line_graph = RefinementLayer(bond, angle, angle + atom + 2 * bond, config, smooth_edges=False)

    def forward(
        self,
        atoms: Float[Tensor, "atoms node_width"],
        bonds: Float[Tensor, "bonds edge_width"],
        angles: Float[Tensor, "angles three_body_width"],
        geometry: Geometry,
        recompute: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Atom, bond and angle features after the block.

        A batch without a single angle skips the layers of the line graph, and then, as published, the atom refinement
        takes the bonds as they came in: what atom attention made of them is dropped. So what a structure without
        angles gives depends on what else is in the batch.

        Args:
            atoms: features.
            bonds: features.
            angles: features.
            geometry: of the batch.
            recompute: whether the line graph's layers are computed again where a derivative needs them.
        """
        incoming = bonds
        if len(angles):
            bonds, angles = _run(recompute, self.attn_block_line_graph, bonds, angles, geometry.angles)
        atoms, bonds = self.attn_block_atom_graph(atoms, bonds, geometry.bonds)
        if len(angles):
            bonds, angles = _run(recompute, self._refine_line_graph, atoms, bonds, angles, geometry)
        else:
            bonds = incoming
        return *self._refine_atom_graph(atoms, bonds, geometry), angles

    def _refine_line_graph(
        self, atoms: Tensor, bonds: Tensor, angles: Tensor, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        layer, graph = self.refine_block_line_graph, geometry.angles
        of_bond = layer.learnable_envelope(geometry.near_radial)
        envelope = of_bond.index_select(0, graph.target) * of_bond.index_select(0, graph.source)
        parts = [(angles, None), (atoms, geometry.angle_centre), (bonds, graph.target), (bonds, graph.source)]
        return layer(bonds, angles, graph, parts, envelope)

    def _refine_atom_graph(self, atoms: Tensor, bonds: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        layer, graph = self.refine_block_atom_graph, geometry.bonds
        envelope = graph.spread(layer.learnable_envelope(geometry.radial))
        parts = [(bonds, graph.rows), (atoms, graph.target), (atoms, graph.source)]
        return layer(atoms, bonds, graph, parts, envelope)


def _run(recompute: bool, layer: Callable[..., tuple[Tensor, Tensor]], *arguments: object) -> tuple[Tensor, Tensor]:
    if not recompute:
        return layer(*arguments)
    from torch.utils.checkpoint import checkpoint

    after: tuple[Tensor, Tensor] = checkpoint(layer, *arguments, use_reentrant=False)
    return after
