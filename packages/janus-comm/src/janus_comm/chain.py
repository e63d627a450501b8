"""A fixed order of collectives in every backward pass, also on ranks that have nothing to say.

Autograd runs a node when its inputs are ready and drops a node that leads to nothing that was asked for. With
collectives as nodes both are wrong: two of them may run in another order on another rank, and a rank that drops one
leaves its peers waiting. A *token*, a tensor of no elements, cures both. It goes in and comes out of every collective
of a :class:`Chain`; :func:`connect` ties its beginning to the tensors one differentiates with respect to, and its end
to the result one differentiates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


class _Connect(torch.autograd.Function):
    @staticmethod
    def forward(result: Tensor, *tensors: Tensor) -> Tensor:
        return result.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.layouts = [(tensor.shape, tensor.dtype, tensor.device) for tensor in inputs[1:]]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        # The sum of no elements: a zero that is a function of the cotangent, even where that holds inf or nan.
        zero = cotangent.reshape(-1)[:0].sum()
        zeros = (
            zero.to(device=device, dtype=dtype).expand(shape) if needed else None
            for (shape, dtype, device), needed in zip(ctx.layouts, ctx.needs_input_grad[1:], strict=True)
        )
        return (cotangent, *zeros)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: Tensor | None) -> Tensor | None:
        return None if tangent is None else tangent.clone()


def connect(result: Float[Tensor, "*shape"], *tensors: Shaped[Tensor, "..."]) -> Float[Tensor, "*shape"]:
    """The result with its values unchanged, as a function of the tensors too, with derivative zero.

    A backward pass from it reaches everything the tensors were computed from, and gradients with respect to them exist
    (zeros) also where the result does not depend on them.
    """
    connected: Tensor = _Connect.apply(result, *tensors)  # type: ignore[no-untyped-call]
    return connected


class KeptResults:
    """What the collectives of a checkpointed function gave, for when it is computed again without other ranks."""

    def __init__(self) -> None:
        self._results: list[Tensor] = []
        self._next: int | None = None

    def begin(self) -> KeptResults:
        """From here on results are kept; earlier ones are forgotten."""
        self._results, self._next = [], None
        return self

    def again(self) -> KeptResults:
        """From here on the kept results are given, from the first one on."""
        self._next = 0
        return self

    def result_of(self, collective: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """What the collective gives, or gave.

        Raises RuntimeError when more collectives are called than the first time.
        """
        if self._next is None:
            self._results.append(collective(rows))
            return self._results[-1].clone()  # the one that is kept gets no history
        if self._next >= len(self._results):
            raise RuntimeError("a checkpointed function called more collectives than when it was computed first")
        self._next += 1
        return self._results[self._next - 1].clone()


class Chain:
    """The order in which one evaluation calls its collectives, kept by every backward pass through them.

    Make one for each evaluation (each graph), from **all** tensors that will be differentiated with respect to, hand it
    to each collective, and :meth:`join` it to each result that is differentiated::

        chain = Chain(positions, *parameters)
        energy = chain.join(model(positions, make_exchange(communicator, chain)))
        (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
        loss = chain.join(loss_of(energy, -gradient), gradient)
        loss.backward()

    Then all ranks run the same collectives in the same order in this and every further backward pass: those of the
    forward pass in reverse, those of an inner backward pass before those of the forward pass. Ranks may be empty, skip
    a branch, or get no gradient at all.

    A checkpointed function must not call its collectives again when it is recomputed, out of order. It keeps their
    results (:meth:`keeping`), and is computed again with a chain of its own that gives it these.
    """

    def __init__(self, *inputs: Shaped[Tensor, "..."], kept: KeptResults | None = None):
        device = inputs[0].device if inputs else None
        with torch.enable_grad():
            self.token = connect(torch.zeros(0, device=device, requires_grad=True), *inputs)
        self._kept = kept

    @contextmanager
    def keeping(self, kept: KeptResults) -> Iterator[None]:
        """Results of the collectives that are called inside are kept."""
        self._kept, before = kept, self._kept
        try:
            yield
        finally:
            self._kept = before

    def result_of(self, collective: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """What a collective gives for these rows, now or when it was called first. For collectives only."""
        return collective(rows) if self._kept is None else self._kept.result_of(collective, rows)

    def join(self, result: Float[Tensor, "*shape"], *others: Shaped[Tensor, "..."]) -> Float[Tensor, "*shape"]:
        """The result, unchanged in value, behind every collective called so far and behind the other tensors.

        Pass as ``others`` the gradients of inner backward passes, so that every rank's outer one goes through these.
        """
        return connect(result, self.token, *others)
