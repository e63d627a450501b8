"""Collectives with derivatives of every order.

A collective is a linear map on the rows of all ranks together, and what is differentiated is the sum of all ranks'
results. Its derivative is its adjoint, another collective, and the derivative of that is the first one again:

===================  ===================
collective           adjoint
===================  ===================
``all_reduce``       ``all_reduce``
``all_gather``       ``reduce_scatter``
``reduce_scatter``   ``all_gather``
``all_to_all``       ``all_to_all``, back
===================  ===================

Rules: every rank calls the same collectives in the same order. With grad mode on, the result of a floating tensor
always requires grad, whether or not this rank's rows do, because other ranks' may; call under ``torch.no_grad()`` what
is not to be differentiated. Integers carry values only. Give a :class:`~janus_comm.Chain` wherever more than one
collective is differentiated, or a rank may be empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.autograd import forward_ad

from janus_comm.chain import Chain
from janus_comm.communicator import Communicator
from janus_comm.tangents import in_tangent_level


@dataclass(frozen=True)
class _LinearMap:
    """A collective and its adjoint, both on values; and the chain it is called in, which may know its result."""

    apply: Callable[[Tensor], Tensor]
    transpose: Callable[[Tensor], Tensor]
    chain: Chain | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        return self.apply(rows) if self.chain is None else self.chain.result_of(self.apply, rows)

    def adjoint(self) -> _LinearMap:
        return _LinearMap(self.transpose, self.apply)


class _Collective(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor, token: Tensor, linear: _LinearMap) -> tuple[Tensor, Tensor]:
        return linear(rows.contiguous()), torch.empty_like(token)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, _LinearMap], output: tuple[Tensor, Tensor]) -> None:
        # Not the chain: it holds on to the graph by its token, and the graph would hold on to it.
        ctx.linear = replace(inputs[2], chain=None)
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, token_cotangent: Tensor) -> tuple[Tensor, Tensor, None]:
        # The adjoint follows in the chain whatever came after this call (the token's cotangent) and this call itself
        # (its token): a derivative of both then runs them in one order.
        (token,) = ctx.saved_tensors
        rows, token = _Collective.apply(cotangent, token_cotangent + token, ctx.linear.adjoint())  # type: ignore[no-untyped-call]
        return rows, token, None


def _call(linear: _LinearMap, rows: Tensor, chain: Chain | None) -> Tensor:
    linear = replace(linear, chain=chain)
    if in_tangent_level() and rows.is_floating_point():
        # A tangent travels the same way, behind its value; also one of zero, as other ranks' may be another.
        value, tangent = forward_ad.unpack_dual(rows)
        there = _differentiable(linear, value, chain)
        return forward_ad.make_dual(
            there, _differentiable(linear, torch.zeros_like(value) if tangent is None else tangent, chain)
        )
    return _differentiable(linear, rows, chain)


def _differentiable(linear: _LinearMap, rows: Tensor, chain: Chain | None) -> Tensor:
    if not torch.is_grad_enabled() or not rows.is_floating_point():
        return linear(rows.detach().contiguous())
    token = torch.zeros(0, device=rows.device, requires_grad=True) if chain is None else chain.token
    if in_tangent_level():
        token = forward_ad.unpack_dual(token).primal
    result, token = _Collective.apply(rows, token, linear)  # type: ignore[no-untyped-call]
    if chain is not None:
        chain.token = token
    return result


def differentiable(
    apply: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    rows: Shaped[Tensor, "given *features"],
    chain: Chain | None = None,
) -> Shaped[Tensor, "got *features"]:
    """``apply(rows)`` for a linear map of all ranks' rows, differentiable any number of times by way of its adjoint.

    Both take and give values: they are called without a graph, each as the derivative of the other.
    """
    return _call(_LinearMap(apply, adjoint), rows, chain)


def all_reduce(
    tensor: Shaped[Tensor, "*shape"], communicator: Communicator, chain: Chain | None = None
) -> Shaped[Tensor, "*shape"]:
    """The sum of all ranks' tensors, the same bits on every rank."""
    return _call(_LinearMap(communicator.sum, communicator.sum), tensor, chain)


def all_gather(
    rows: Shaped[Tensor, "own *features"], communicator: Communicator, counts: Sequence[int], chain: Chain | None = None
) -> Shaped[Tensor, "all *features"]:
    """All ranks' rows in the order of the ranks; ``counts[r]`` rows, maybe none, come from rank r."""
    return _call(_gather(communicator, counts), rows, chain)


def reduce_scatter(
    rows: Shaped[Tensor, "all *features"], communicator: Communicator, counts: Sequence[int], chain: Chain | None = None
) -> Shaped[Tensor, "own *features"]:
    """This rank's part, ``counts[rank]`` rows, of the sum of all ranks' rows."""
    return _call(_gather(communicator, counts).adjoint(), rows, chain)


def all_to_all(
    rows: Shaped[Tensor, "sent *features"],
    communicator: Communicator,
    send_counts: Sequence[int],
    receive_counts: Sequence[int],
    chain: Chain | None = None,
) -> Shaped[Tensor, "received *features"]:
    """The rows that every rank meant for this one, in the order of the ranks.

    The first ``send_counts[0]`` rows go to rank 0, the next ``send_counts[1]`` to rank 1, and so on;
    ``receive_counts[r]`` must be what rank r sends here. Any of them may be zero.
    """
    there, back = tuple(send_counts), tuple(receive_counts)
    return differentiable(
        lambda sent: communicator.exchange_rows(sent, there, back),
        lambda sent: communicator.exchange_rows(sent, back, there),
        rows,
        chain,
    )


def _gather(communicator: Communicator, counts: Sequence[int]) -> _LinearMap:
    fixed = tuple(counts)
    return _LinearMap(
        lambda rows: communicator.gather_rows(rows, fixed),
        lambda rows: communicator.reduce_scatter_rows(rows, fixed),
    )
