"""What the kernels of both attentions share: a softmax with a sink and an envelope, and its tangent."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def softmax_with_sink(scores, envelope, there):
    """Row by row e^s / (1 + Σ φ e^s), zero where nothing is there; times the envelope it is the attention.

    Without the envelope it is also what the attention's derivative in the envelope is made of, with no division by one
    that may be zero.
    """
    scores = tl.where(there, scores, 0.0)
    # Any shift cancels between numerator and denominator, sink included; this one keeps exp in range.
    shift = tl.maximum(tl.max(scores, 1), 0.0)
    powers = tl.where(there, tl.exp(scores - shift[:, None]), 0.0)
    total = tl.exp(-shift) + tl.sum(powers * envelope[None, :], 1)
    return powers / total[:, None]


@triton.jit
def softmax_with_sink_tangent(share, envelope, scores_along, envelope_along):
    """The derivative of `softmax_with_sink` along moves of scores and envelope; `share` is its value."""
    of_total = tl.sum(share * (envelope[None, :] * scores_along + envelope_along[None, :]), 1)
    return share * (scores_along - of_total[:, None])
