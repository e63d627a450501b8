"""Weights of selected experts, taken out of a store without touching the others, forth or back.

Torch's own derivative of a selection writes zeros over a gradient as large as the store, and then adds. A store is
mostly experts that no present element selects, so that is most of what a step with few rows would do.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd import Function


def select_experts(store: Float[Tensor, "experts *shape"], selected: Int64[Tensor, "n"]) -> Float[Tensor, "n *shape"]:
    """`store[selected]`; derivatives of every order, backward and forward."""
    chosen: Tensor = _Selection.apply(store, selected)  # type: ignore[no-untyped-call]
    return chosen


def select_scaled_experts(
    store: Float[Tensor, "experts *shape"], selected: Int64[Tensor, "n"], scales: Float[Tensor, "n"]
) -> Float[Tensor, "n *shape"]:
    """`scales[i] · store[selected[i]]` for every i; derivatives of every order, backward and forward."""
    chosen: Tensor = _ScaledSelection.apply(store, selected, scales)  # type: ignore[no-untyped-call]
    return chosen


class _Selection(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(store: Tensor, selected: Tensor) -> Tensor:
        return store.index_select(0, selected)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        store, selected = inputs
        ctx.experts = store.shape[0]
        ctx.save_for_backward(selected)
        ctx.save_for_forward(selected)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (selected,) = ctx.saved_tensors
        return _scattered(gradient, selected, ctx.experts), None

    @staticmethod
    def jvp(ctx: Any, along_store: Tensor, _: None) -> Tensor:
        (selected,) = ctx.saved_tensors
        return along_store.index_select(0, selected)


class _ScaledSelection(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(store: Tensor, selected: Tensor, scales: Tensor) -> Tensor:
        # One pass over fresh memory: nobody else holds what was just selected.
        return store.index_select(0, selected).mul_(_column(scales, store))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        store, selected, scales = ctx.saved_tensors
        to_store = to_scales = None
        if ctx.needs_input_grad[0]:
            to_store = _scattered(gradient, selected, store.shape[0], scales)
        if ctx.needs_input_grad[2]:
            # Dot products as matrix products: nothing as large as the weights is written.
            places, numbers = selected.shape[0], store.shape[1:].numel()
            chosen = store.index_select(0, selected).reshape(places, numbers, 1)
            to_scales = torch.bmm(gradient.reshape(places, 1, numbers), chosen).reshape(places)
        return to_store, None, to_scales

    @staticmethod
    def jvp(ctx: Any, along_store: Tensor | None, _: None, along_scales: Tensor | None) -> Tensor:
        store, selected, scales = ctx.saved_tensors
        terms = [] if along_store is None else [along_store.index_select(0, selected) * _column(scales, store)]
        if along_scales is not None:
            terms.append(store.index_select(0, selected) * _column(along_scales, store))
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]


def _column(scales: Tensor, store: Tensor) -> Tensor:
    """One number for each matrix, ready to be multiplied with it."""
    return scales.reshape(-1, *[1] * (store.dim() - 1))


def _scattered(gradient: Tensor, selected: Tensor, experts: int, scales: Tensor | None = None) -> Tensor:
    """The sum of the gradients of every expert, scaled if they are; zero for those that are not selected."""
    shape = (experts, *gradient.shape[1:])
    # What is differentiated again, or stands for many gradients (and holds no numbers), needs zeros of its own kind.
    if gradient.device.type != "cpu" or torch.is_grad_enabled() or not torch._C._has_storage(gradient):
        scaled = gradient if scales is None else gradient * _column(scales, gradient)
        return gradient.new_zeros(shape).index_add_(0, selected, scaled)
    total = untouched_zeros(shape, gradient.dtype)
    # One pass over each gradient. `index_add_` takes several times as long for matrices, and a product with scales
    # would fill memory as large as all of them.
    alphas = [1.0] * len(selected) if scales is None else scales.tolist()
    for expert, one, alpha in zip(selected.tolist(), gradient.unbind(), alphas, strict=True):
        total[expert].add_(one, alpha=alpha)
    return total


def untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in memory that the system has yet to hand out; it does so page by page, when something is written there.

    Small pages, which `numpy.zeros` would not ask for: experts are scattered over the store, and on a virtual machine
    fresh huge pages made a step slower (docs/moe.md).
    """
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.zeros(shape, dtype=dtype)
    # Private: reading a page that was never written to costs no memory then.
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).reshape(shape)
