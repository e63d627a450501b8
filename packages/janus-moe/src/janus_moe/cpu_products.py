"""Grouped products on CPUs, where memory is what they wait for.

A training step that is differentiated twice multiplies by the same matrices twice and more, and each product has a
gradient as large as all of them. Memory of that size is not kept between uses: the system hands it out anew, page by
page, filled with zeros. So gradients of the same matrices are not made one by one and added; a product adds its own to
the sum that is there already.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function


def product_on_cpu(
    rows: Float[Tensor, "rows in"], weights: Float[Tensor, "present in out"], counts: tuple[int, ...]
) -> Float[Tensor, "rows out"]:
    """`rows[r] @ weights[g]` for every row r of every group g, of which group g has `counts[g]`; any dtype and strides.

    Derivatives of every order, backward and forward, and under function transforms.
    """
    collected = _Collected()
    product: Tensor = _Product.apply(rows, _Collect.apply(weights, collected), counts, False, collected)  # type: ignore[no-untyped-call]
    return product


class _Collected:
    """Gradients of the same matrices in the passes that are on their way, added up where they are computed.

    Attributes:
        sums: of each pass, by its number. One that was broken off leaves its sum behind, and no other pass takes it.
    """

    def __init__(self) -> None:
        self.sums: dict[int, Tensor] = {}

    def add(self, left: Tensor, right: Tensor, counts: tuple[int, ...], as_stored: Tensor) -> None:
        """Adds the outer products over each group, in the layout of the matrices."""
        number = torch._C._current_graph_task_id()
        found = self.sums.get(number)
        if found is None:
            self.sums[number] = _outer_products(left, right, counts, as_stored)
        else:
            for group, (a, b) in enumerate(zip(left.split(counts), right.split(counts), strict=True)):
                torch.addmm(found[group], a.mT, b, out=found[group])

    def take(self) -> Tensor | None:
        """The sum of the present pass; it is forgotten here."""
        return self.sums.pop(torch._C._current_graph_task_id(), None)


class _Collect(Function):
    """The matrices as they are, whose gradient is what was collected in a pass, and what came the usual way."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Tensor, collected: _Collected) -> Tensor:
        return weights.view_as(weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Collected], output: Tensor) -> None:
        ctx.collected = inputs[1]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        collected = ctx.collected.take()
        if gradient is None or collected is None:
            return (collected if gradient is None else gradient), None
        return gradient + collected, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent.view_as(tangent)


class _Product(Function):
    """Rows times the matrix of their group, or times its transpose."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        rows: Tensor, weights: Tensor, counts: tuple[int, ...], turned: bool, collected: _Collected | None
    ) -> Tensor:
        matrices = weights.mT if turned else weights
        parts = zip(rows.split(counts) if counts else (), matrices.unbind(), strict=True)
        if not _at_hand(rows, weights):
            products = [part @ matrix for part, matrix in parts]
            return torch.cat(products) if products else rows @ matrices.sum(0)
        product = rows.new_empty(rows.shape[0], matrices.shape[2])
        for (part, matrix), place in zip(parts, product.split(counts) if counts else (), strict=True):
            torch.mm(part, matrix, out=place)
        return product

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        rows, weights, ctx.counts, ctx.turned, ctx.collected = inputs
        ctx.save_for_backward(rows, weights)
        ctx.save_for_forward(rows, weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        rows, weights = ctx.saved_tensors
        to_rows = to_weights = None
        if ctx.needs_input_grad[0]:
            to_rows = _Product.apply(gradient, weights, ctx.counts, not ctx.turned, ctx.collected)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1] and _is_wanted(weights):
            left, right = (gradient, rows) if ctx.turned else (rows, gradient)
            if ctx.collected is None or torch.is_grad_enabled() or not _at_hand(left, right, weights):
                to_weights = _OuterProduct.apply(left, right, ctx.counts)  # type: ignore[no-untyped-call]
            else:
                ctx.collected.add(left, right, ctx.counts, weights)
        return to_rows, to_weights, None, None, None

    @staticmethod
    def jvp(ctx: Any, along_rows: Tensor | None, along_weights: Tensor | None, *_: None) -> Tensor:
        rows, weights = ctx.saved_tensors
        terms = []
        if along_rows is not None:
            terms.append(_Product.apply(along_rows, weights, ctx.counts, ctx.turned, ctx.collected))  # type: ignore[no-untyped-call]
        if along_weights is not None:
            terms.append(_Product.apply(rows, along_weights, ctx.counts, ctx.turned, None))  # type: ignore[no-untyped-call]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]


class _OuterProduct(Function):
    """For every group the sum of `outer(left[r], right[r])` over its rows: the derivative of `_Product` in weights."""

    generate_vmap_rule = True

    @staticmethod
    def forward(left: Tensor, right: Tensor, counts: tuple[int, ...]) -> Tensor:
        if not _at_hand(left, right):
            parts = zip(left.split(counts), right.split(counts), strict=True) if counts else ()
            products = [a.mT @ b for a, b in parts]
            return (
                torch.stack(products)
                if products
                else (left.sum() * right.sum()).expand(0, left.shape[1], right.shape[1])
            )
        return _outer_products(left, right, counts)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        left, right, ctx.counts = inputs
        ctx.save_for_backward(left, right)
        ctx.save_for_forward(left, right)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        left, right = ctx.saved_tensors
        to_left = to_right = None
        if ctx.needs_input_grad[0]:
            to_left = _Product.apply(right, gradient, ctx.counts, True, None)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1]:
            to_right = _Product.apply(left, gradient, ctx.counts, False, None)  # type: ignore[no-untyped-call]
        return to_left, to_right, None

    @staticmethod
    def jvp(ctx: Any, along_left: Tensor | None, along_right: Tensor | None, _: None) -> Tensor:
        left, right = ctx.saved_tensors
        terms = []
        if along_left is not None:
            terms.append(_OuterProduct.apply(along_left, right, ctx.counts))  # type: ignore[no-untyped-call]
        if along_right is not None:
            terms.append(_OuterProduct.apply(left, along_right, ctx.counts))  # type: ignore[no-untyped-call]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]


def _outer_products(left: Tensor, right: Tensor, counts: tuple[int, ...], as_stored: Tensor | None = None) -> Tensor:
    """Of every group the sum over its rows; stored as the matrices are, whose gradient it is."""
    shape = (len(counts), left.shape[1], right.shape[1])
    if as_stored is not None and as_stored.stride(1) < as_stored.stride(2):
        sums = left.new_empty(shape[0], shape[2], shape[1]).mT
    else:
        sums = left.new_empty(shape)
    parts = zip(left.split(counts), right.split(counts), sums, strict=True) if counts else ()
    for a, b, total in parts:
        torch.mm(a.mT, b, out=total)
    return sums


def _at_hand(*tensors: Tensor) -> bool:
    """Whether all of them hold numbers, rather than stand for many tensors of a function transform."""
    return all(torch._C._has_storage(tensor) for tensor in tensors)


def _is_wanted(weights: Tensor) -> bool:
    """Whether the pass that runs needs a gradient of the matrices; torch says only whether there could be one."""
    node = weights.grad_fn
    return node is None or torch._C._will_engine_execute_node(node)
