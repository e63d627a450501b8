"""Chains of elementwise operations as one compiled kernel, for the function and for its first two derivatives.

A conservative potential is differentiated twice, and a compiler's own derivative can be taken once. So the function,
its gradient and the gradient of its gradient are compiled each as a plain function, and strung together as autograd
nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function

TensorFunction: TypeAlias = Callable[..., Tensor]
"""Tensors in, one tensor out; pure, and smooth in every input."""


def fused(function: TensorFunction) -> TensorFunction:
    """An equal function that runs as one compiled kernel, and so do its first and second derivatives.

    Third derivatives are those of the plain function. Kernels are compiled when they are first needed, for any number
    of rows, which takes some seconds each and needs a C++ compiler (on CPUs) or Triton (on GPUs). Fuse a function once
    and hand the result to everyone who uses it: each call of `fused` compiles anew.

    Args:
        function: differentiable tensor in, one tensor out; every input a tensor.
    """
    return twice_differentiable(function, _compiled)


def twice_differentiable(
    function: TensorFunction, compile_function: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> TensorFunction:
    """The autograd nodes of `fused`, for any compiler of plain functions."""
    value = compile_function(function)

    def gradient(outer: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Gradients of Σ outer · function(inputs) in all inputs."""
        back: Any = torch.func.vjp(function, *inputs)[1]
        return back(outer)

    compiled_gradient = compile_function(gradient)

    def curvature(outers: tuple[Tensor, ...], outer: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Gradients of Σ outers · gradient(outer, inputs) in outer and all inputs."""
        back: Any = torch.func.vjp(gradient, outer, *inputs)[1]
        return back(outers)

    compiled_curvature = compile_function(curvature)

    class Gradient(Function):
        @staticmethod
        def forward(outer: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            return tuple(compiled_gradient(*_detached(outer, *inputs)))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
            ctx.save_for_backward(*inputs)
            ctx.set_materialize_grads(True)

        @staticmethod
        def backward(ctx: Any, *outers: Tensor) -> tuple[Tensor, ...]:
            if torch.is_grad_enabled():  # a third derivative is wanted
                return curvature(outers, *ctx.saved_tensors)
            return tuple(compiled_curvature(_detached(*outers), *_detached(*ctx.saved_tensors)))

    class Value(Function):
        @staticmethod
        def forward(*inputs: Tensor) -> Tensor:
            return value(*_detached(*inputs))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, ...]:
            return Gradient.apply(outer, *ctx.saved_tensors)  # type: ignore[no-untyped-call]

    def apply(*inputs: Tensor) -> Tensor:
        return Value.apply(*inputs)  # type: ignore[no-untyped-call]

    return apply


def _detached(*tensors: Tensor) -> tuple[Tensor, ...]:
    # A compiler looks at what its inputs were made of, though these functions are plain and autograd's nodes are their
    # graph: it makes a variant for each kind, and on the thread of a GPU's backward pass torch 2.11 fails over it.
    return tuple(tensor.detach() for tensor in tensors)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # What torch has compiled hangs on a function's code, a few variants of it at most. Functions made by one closure
    # share their code, and would soon have used that up between them; so each gets a copy.
    copy = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    return torch.compile(copy, dynamic=True)
