"""What all blocks of one forward pass share: who sends to whom, and functions of distances and angles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from janus_graph import AtomGraph, edge_vectors
from matris_model.compat.embedding import EdgeEmbedding
from matris_model.compat.plan import Plan, make_plan

# Keeps cosines off ±1, where the angle has no derivative. Published.
_SHRINK = 1 - 1e-6


@dataclass(frozen=True, eq=False)
class Messages:
    """Directed messages between nodes. In the atom graph the nodes are atoms; in the line graph they are bonds.

    Attributes:
        target: node that each message goes to.
        source: node that it comes from.
        nodes: number of nodes.
        rows: row of edge features that each message belongs to, where both directions share one; else None.
        copies: the two messages of each row of edge features, where they share one; else None.
    """

    target: Int64[Tensor, "messages"]
    source: Int64[Tensor, "messages"]
    nodes: int
    rows: Int64[Tensor, "messages"] | None = None
    copies: tuple[Int64[Tensor, "edges"], Int64[Tensor, "edges"]] | None = None

    def spread(self, edges: Float[Tensor, "edges width"]) -> Float[Tensor, "messages width"]:
        """Each message's row of edge features."""
        return edges if self.rows is None else edges.index_select(0, self.rows)

    def mean_of_copies(self, messages: Float[Tensor, "messages width"]) -> Float[Tensor, "edges width"]:
        """The mean over the messages that share a row of edge features."""
        if self.copies is None:
            return messages
        first, second = self.copies
        return (messages.index_select(0, first) + messages.index_select(0, second)) / 2


@dataclass(frozen=True, eq=False)
class Geometry:
    """Everything about a batch that blocks read and do not change.

    Attributes:
        bonds: the atom graph, in which bonds carry messages between atoms.
        angles: the line graph, in which angles carry messages between bonds.
        angle_centre: atom in the middle of each angle.
        radial: Bessel functions of each bond's length that end at the cutoff.
        near_radial: those that end at the three-body cutoff.
        cosines: of each angle, a little shrunk.
    """

    bonds: Messages
    angles: Messages
    angle_centre: Int64[Tensor, "angles"]
    radial: Float[Tensor, "bonds functions"]
    near_radial: Float[Tensor, "bonds functions"]
    cosines: Float[Tensor, "angles"]


def graph_geometry(graph: AtomGraph, embedding: EdgeEmbedding, dtype: torch.dtype) -> Geometry:
    """Index plans and basis functions of a graph, differentiable in its positions and cells.

    Vectors are taken in float64, once a bond, and cast after.
    """
    plan = make_plan(graph)
    one_way = graph.replace(
        edge_index=graph.edge_index.index_select(1, plan.first),
        edge_shifts=graph.edge_shifts[plan.first],
        neighbour_numbers=graph.neighbour_numbers[plan.first],
    )
    vectors = edge_vectors(one_way).to(dtype)
    distances = vectors.square().sum(dim=1).sqrt()
    return Geometry(
        bonds=Messages(
            graph.edge_index[0], graph.edge_index[1], graph.atoms, plan.bond_of_edge, (plan.first, plan.second)
        ),
        angles=Messages(plan.angle_bonds[0], plan.angle_bonds[1], len(plan.first)),
        angle_centre=plan.angle_centre,
        radial=embedding.pairwise_rbf_expansion(distances),
        near_radial=embedding.threebody_rbf_expansion(distances),
        cosines=_cosines(vectors / distances[:, None], plan),
    )


def _cosines(units: Float[Tensor, "bonds 3"], plan: Plan) -> Float[Tensor, "angles"]:
    directed = units.index_select(0, plan.bond_of_edge) * plan.sign.to(units.dtype)[:, None]
    target, source = (directed.index_select(0, edges) for edges in plan.angle_edges)
    return _SHRINK * (target * source).sum(dim=1)
