"""The elementwise formulas of a block, in one place, so that they can be compiled together or replaced."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from janus_moe import TensorFunction, fused, gated_silu

NORM_EPS = 1e-5
"""Of all normalisations. Fixed, so that what a model computes does not depend on its precision."""


LARGEST_LOGIT = 10.0
"""What queries and keys add to a logit of the atom attention stays below this. An edge counts as long as its envelope
is above e^−logit: without a bound that can be a hair from the cutoff, where energy and forces would be smooth in name
only; with it, it is a sixtieth of the cutoff.
"""


def rms_norm(features: Float[Tensor, "rows width"], weight: Float[Tensor, "width"]) -> Float[Tensor, "rows width"]:
    """`weight · x / √(mean x² + eps)`, row by row."""
    return torch.nn.functional.rms_norm(features, weight.shape, weight, NORM_EPS)


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


@dataclass(frozen=True)
class Formulas:
    """How the elementwise parts of a block are computed.

    Attributes:
        norm: `rms_norm`, or an equal.
        activation: `janus_moe.gated_silu`, or an equal.
        near_weights: `near_weights`, or an equal.
        edge_weights: `edge_weights`, or an equal.
    """

    norm: TensorFunction
    activation: TensorFunction
    near_weights: TensorFunction
    edge_weights: TensorFunction


PLAIN = Formulas(rms_norm, gated_silu, near_weights, edge_weights)
"""One torch operation after the other: no waiting, no compiler."""


def fused_formulas() -> Formulas:
    """The same formulas, each one compiled kernel, and so are their first two derivatives (`janus_moe.fused`)."""
    return Formulas(fused(rms_norm), fused(gated_silu), fused(near_weights), fused(edge_weights))
