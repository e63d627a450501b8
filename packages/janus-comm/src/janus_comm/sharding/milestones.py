"""Places in every pass that all ranks come to in one order: where gathers and reductions keep step with a chain.

Weights come when a pass reaches a block, and halos move when autograd gets to them. Ranks of one unit that share a
graph do the same collectives of either kind, but one that has nothing to compute never asks for weights. Then one rank
waits in a gather for another that waits in a halo. A milestone before and after each block is a link of the chain that
holds the halos together: every rank passes it in every pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from janus_comm.chain import Chain
from janus_comm.tangent_rules import tangent_of, value_of


@dataclass(frozen=True)
class Visit:
    """What happens when a pass comes by, and what does when one comes by the other way."""

    there: Callable[[], None]
    back: Callable[[], None]

    def reversed(self) -> Visit:
        """The same seen by a pass that goes the other way."""
        return Visit(self.back, self.there)


def pass_milestone(visit: Visit, chain: Chain, *features: Tensor) -> tuple[Tensor, ...]:
    """The features, unchanged, behind a milestone; each derivative of theirs passes it the other way."""
    if not torch.is_grad_enabled():
        visit.there()
        return features
    values, tangents = tuple(map(value_of, features)), tuple(map(tangent_of, features))
    moving = [tangent for tangent in tangents if tangent is not None]
    chain.token, *passed = _Milestone.apply(visit, value_of(chain.token), *values, *moving)  # type: ignore[no-untyped-call]
    along = iter(passed[len(values) :])
    return tuple(
        value if tangent is None else forward_ad.make_dual(value, next(along))
        for value, tangent in zip(passed, tangents, strict=False)
    )


class _Milestone(torch.autograd.Function):
    @staticmethod
    def forward(visit: Visit, token: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        visit.there()
        return torch.empty_like(token), *(feature.view_as(feature) for feature in features)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.visit = inputs[0]
        ctx.save_for_backward(output[0])

    @staticmethod
    def backward(ctx: Any, token_cotangent: Tensor, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        # Behind whatever followed in the chain, and behind this milestone itself, as a collective's adjoint is.
        (token,) = ctx.saved_tensors
        return None, *_Milestone.apply(ctx.visit.reversed(), token_cotangent + token, *cotangents)  # type: ignore[no-untyped-call]
