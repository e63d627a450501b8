"""What strings hand-written kernels together to a function that can be differentiated, backward and forward.

With F the function and B(x, g) = ∇ₓ⟨g, F(x)⟩ its backward pass, a second derivative is the gradient of ⟨w, B(x, g)⟩
in x and g. As second derivatives commute, that is the tangent of B along w, with g held, and the tangent of F along w:
what comes out of carrying values and tangents through the formulas of F and B. So three kernels are enough for F, its
gradient, its tangent, and the gradients and tangents of those.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

Tensors = tuple[Tensor, ...]


class Kernels(Protocol):
    """A function of several tensors, F(x), in the forms that its derivatives need. No form has a history of its own."""

    def value(self, *inputs: Tensor) -> Tensor:
        """F(x)."""
        ...

    def gradient(self, outer: Tensor, *inputs: Tensor) -> Tensors:
        """B(x, g) = ∇ₓ⟨g, F(x)⟩ for every input, with g = outer."""
        ...

    def tangent(self, inputs: Tensors, along: Tensors) -> Tensor:
        """The derivative of F along moves of all inputs."""
        ...

    def curvature(self, outer: Tensor, inputs: Tensors, along: Tensors) -> Tensors:
        """The derivatives of F, and then of B for every input, along moves of all inputs; outer is held."""
        ...

    def plain(self, *inputs: Tensor) -> Tensor:
        """F(x) in torch operations: what third derivatives are taken of."""
        ...


def differentiable(kernels: Kernels, *inputs: Tensor) -> Tensor:
    """F(x), with derivatives of every order: the first and second by kernels, higher ones by the plain form."""
    value: Tensor = _Value.apply(kernels, *inputs)
    return value


class _Value(Function):
    """F."""

    @staticmethod
    def forward(kernels: Kernels, *inputs: Tensor) -> Tensor:
        return kernels.value(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _keep(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        return None, *_Gradient.apply(ctx.kernels, outer, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, _: None, *along: Tensor | None) -> Tensor:
        inputs = ctx.saved_tensors
        tangent: Tensor = _Tangent.apply(ctx.kernels, *inputs, *_moves(along, inputs))
        return tangent


class _Gradient(Function):
    """B, linear in what comes from outside."""

    @staticmethod
    def forward(kernels: Kernels, outer: Tensor, *inputs: Tensor) -> Tensors:
        return kernels.gradient(outer, *inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _keep(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> tuple[Any, ...]:
        outer, *inputs = ctx.saved_tensors
        return None, *_Curvature.apply(ctx.kernels, outer, *inputs, *along)

    @staticmethod
    def jvp(ctx: Any, _: None, outer_along: Tensor | None, *along: Tensor | None) -> Tensors:
        outer, *inputs = ctx.saved_tensors
        carried: Tensors = _Curvature.apply(ctx.kernels, outer, *inputs, *_moves(along, inputs))[1:]
        if outer_along is None:
            return carried
        of_outer: Tensors = _Gradient.apply(ctx.kernels, outer_along, *inputs)
        return tuple(a + b for a, b in zip(carried, of_outer, strict=True))


class _Tangent(Function):
    """The derivative of F along moves, in which it is linear; what it is differentiated in is x and the moves."""

    @staticmethod
    def forward(kernels: Kernels, *inputs_and_along: Tensor) -> Tensor:
        half = len(inputs_and_along) // 2
        return kernels.tangent(inputs_and_along[:half], inputs_and_along[half:])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _keep(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        both = ctx.saved_tensors
        to_inputs = _Curvature.apply(ctx.kernels, outer, *both)[1:]
        to_along = _Gradient.apply(ctx.kernels, outer, *both[: len(both) // 2])
        return None, *to_inputs, *to_along


class _Curvature(Function):
    """The derivatives of F and B along moves. Its own derivatives are third ones, and those the plain form knows."""

    @staticmethod
    def forward(kernels: Kernels, outer: Tensor, *inputs_and_along: Tensor) -> Tensors:
        half = len(inputs_and_along) // 2
        return kernels.curvature(outer, inputs_and_along[:half], inputs_and_along[half:])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _keep(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *outers: Tensor) -> tuple[Any, ...]:
        def curvature(outer: Tensor, *inputs_and_along: Tensor) -> Tensors:
            half = len(inputs_and_along) // 2
            inputs, along = inputs_and_along[:half], inputs_and_along[half:]

            def gradient(outer: Tensor, *inputs: Tensor) -> Tensors:
                back: Any = torch.func.vjp(ctx.kernels.plain, *inputs)[1]
                return tuple(back(outer))

            back: Any = torch.func.vjp(gradient, outer, *inputs)[1]
            return tuple(back(along))

        back: Any = torch.func.vjp(curvature, *ctx.saved_tensors)[1]
        return None, *back(outers)


def _keep(ctx: Any, inputs: Any) -> None:
    ctx.kernels, *tensors = inputs
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _moves(along: tuple[Tensor | None, ...], inputs: Any) -> Tensors:
    return tuple(torch.zeros_like(x) if move is None else move for move, x in zip(along, inputs, strict=True))
