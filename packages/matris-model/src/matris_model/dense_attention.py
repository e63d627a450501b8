"""Both attentions of a block over dense tables, one torch operation after the other.

What they compute is what every faster form must: these are the oracles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from janus_graph import EdgeTables
from janus_moe import TensorFunction
from matris_model.geometry import Geometry, NearTable

LARGEST_LOGIT = 10.0
"""What queries and keys add to a logit of the atom attention stays below this. An edge counts as long as its envelope
is above e^−logit: without a bound that can be a hair from the cutoff, where energy and forces would be smooth in name
only; with it, it is a sixtieth of the cutoff.
"""


def near_weights(
    products: Float[Tensor, "atoms heads n n"],
    bias: Float[Tensor, "atoms heads n n"],
    angular_filter: Float[Tensor, "atoms heads n n"],
    envelope_of_other: Float[Tensor, "atoms n n"],
    envelope: Float[Tensor, "atoms n"],
) -> Float[Tensor, "atoms heads n n"]:
    """What each near edge p takes of the value of each other one q: `φ_p α_pq γ(cos θ_pq)`.

    α_pq = φ_q e^{s_pq} / (1 + Σ_{q'≠p} φ_{q'} e^{s_pq'}) with logits s = products + bias.
    """
    scores = products + bias
    # Any shift cancels between numerator and denominator, sink included; this one keeps exp in range.
    shift = scores.detach().amax(dim=3, keepdim=True).clamp(min=0)
    weights = envelope_of_other[:, None] * torch.exp(scores - shift)
    total = torch.exp(-shift) + weights.sum(dim=3, keepdim=True)
    return weights * angular_filter * (envelope[:, None, :, None] / total)


def edge_weights(
    products: Float[Tensor, "atoms heads n"],
    bias: Float[Tensor, "atoms heads n"],
    envelope: Float[Tensor, "atoms n"],
) -> Float[Tensor, "atoms heads n"]:
    """Attention of each atom over its edges, `φ_k e^s / (1 + Σ φ e^s)`.

    Logits are s = products + bias with the products squashed between ±`LARGEST_LOGIT`, as the size of messages is not
    bounded; the bias is a linear function of the radial basis, which is zero at the cutoff by itself.
    """
    scores = LARGEST_LOGIT * torch.tanh(products / LARGEST_LOGIT) + bias
    shift = scores.detach().amax(dim=2, keepdim=True).clamp(min=0)
    weights = envelope[:, None, :] * torch.exp(scores - shift)
    return weights / (torch.exp(-shift) + weights.sum(dim=2, keepdim=True))


def near_attention(
    rows: Float[Tensor, "near width3"],
    bias: Float[Tensor, "heads functions"],
    angular_filter: Float[Tensor, "heads functions"],
    geometry: Geometry,
    weights: TensorFunction = near_weights,
) -> Float[Tensor, "near width"]:
    """What each near edge takes of the values of the others around its atom, `φ_p Σ_q α_pq γ(cos θ_pq) V e_q`.

    Args:
        rows: query, key and value of each near edge, side by side.
        bias: coefficients of Legendre polynomials in the logits.
        angular_filter: those of γ.
        geometry: with tables.
        weights: `near_weights`, or an equal.
    """
    return attention_of_tables(rows, torch.cat([bias, angular_filter]), geometry.near, geometry.near_tables, weights)


def attention_of_tables(
    rows: Float[Tensor, "near width3"],
    coefficients: Float[Tensor, "heads2 functions"],
    near: EdgeTables,
    tables: tuple[NearTable, ...],
    weights: TensorFunction = near_weights,
) -> Float[Tensor, "near width"]:
    """`near_attention` with the coefficients of bias and filter as one, and with what it reads of the geometry."""
    spread = zip(near.spread(rows), tables, strict=True)
    return near.collect([_among_near(part, coefficients, table, weights) for part, table in spread])


def _among_near(
    rows: Float[Tensor, "atoms n width3"],
    coefficients: Float[Tensor, "heads2 functions"],
    table: NearTable,
    weights: TensorFunction,
) -> Float[Tensor, "atoms n width"]:
    n, heads = rows.shape[1], coefficients.shape[0] // 2
    query, key, value = rows.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    angular = torch.matmul(coefficients, table.angular)
    bias, angular_filter = angular.unflatten(2, (n, n)).split(heads, dim=1)
    products = torch.matmul(query / math.sqrt(query.shape[-1]), key.transpose(2, 3))
    taken = weights(products, bias, angular_filter, table.envelope_of_other, table.envelope)
    return torch.matmul(taken, value).transpose(1, 2).flatten(2)


def edge_attention(
    query: Float[Tensor, "atoms heads width"],
    messages: Float[Tensor, "edges width"],
    radial: Float[Tensor, "heads functions"],
    geometry: Geometry,
    weights: TensorFunction = edge_weights,
) -> Float[Tensor, "atoms heads width"]:
    """What each atom gathers from its messages, `Σ_k α_k m_k`; zeros for an atom without edges.

    Args:
        query: what each head asks of a message, divided by the root of its size.
        messages: one row an edge.
        radial: coefficients of the radial basis in the logits.
        geometry: with tables.
        weights: `edge_weights`, or an equal.
    """
    tables = [(linear(table.radial, radial), table.envelope) for table in geometry.around_tables]
    return gathered_by_tables(query, messages, geometry.around, tables, weights)


def gathered_by_tables(
    query: Float[Tensor, "atoms heads width"],
    messages: Float[Tensor, "edges width"],
    around: EdgeTables,
    tables: Sequence[tuple[Float[Tensor, "atoms n heads"], Float[Tensor, "atoms n"]]],
    weights: TensorFunction = edge_weights,
) -> Float[Tensor, "atoms heads width"]:
    """`edge_attention` with what distances add to the logits, and envelopes, table by table."""
    query = query.index_select(0, around.atoms)
    rows, sums = around.spread(messages), []
    atoms_of_table = [shape[0] for shape in around.shapes]
    for asked, row, (bias, envelope) in zip(query.split(atoms_of_table), rows, tables, strict=True):
        products = torch.matmul(asked, row.transpose(1, 2))
        sums.append(torch.matmul(weights(products, bias.transpose(1, 2), envelope), row))
    nothing = messages.new_zeros(1, *query.shape[1:])  # what an atom without edges gathers
    if not sums:
        # What there is none of still belongs to the result's history: a rank without edges takes part in the
        # derivatives of every exchange, or the others would wait for it.
        nothing = nothing + messages.sum()
    return torch.cat([*sums, nothing]).index_select(0, around.rows)
