"""Products of rows with the matrix of their group: the one operation that experts are made of."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import grouped_mm

from janus_moe.cpu_products import product_on_cpu
from janus_moe.groups import ElementGroups


class GroupedProduct(Protocol):
    """Multiplies every row by the matrix of its group; differentiable in both, any number of times."""

    def __call__(
        self, rows: Float[Tensor, "rows in"], weights: Float[Tensor, "present in out"], groups: ElementGroups
    ) -> Float[Tensor, "rows out"]:
        """`rows[r] @ weights[g]` for every row r of every group g."""
        ...


def loop_product(rows: Tensor, weights: Tensor, groups: ElementGroups) -> Tensor:
    """One dense product per group. Any dtype, any shape: the oracle, and what float64 uses on GPUs."""
    slices = rows.split(groups.counts) if groups.counts else ()
    products = [part @ weight for part, weight in zip(slices, weights.unbind(), strict=True)]
    # With no group at all the weights still belong to the result's history, so that gradients are zeros, not None.
    return torch.cat(products) if products else rows @ weights.sum(0)


def grouped_product(rows: Tensor, weights: Tensor, groups: ElementGroups) -> Tensor:
    """The product that is fastest where the rows are: `product_on_cpu` on CPUs, `kernel_product` elsewhere."""
    if rows.device.type == "cpu":
        return product_on_cpu(rows, weights, groups.counts)
    return kernel_product(rows, weights, groups)


def kernel_product(rows: Tensor, weights: Tensor, groups: ElementGroups) -> Tensor:
    """One grouped matrix product where torch has it for the dtype and shape, the loop elsewhere."""
    if groups.counts and _fits_grouped_mm(rows, weights):
        return _written_out(grouped_mm(_written_out(rows), _written_out(weights), offs=groups.ends))
    return loop_product(rows, weights, groups)


def _fits_grouped_mm(rows: Tensor, weights: Tensor) -> bool:
    """No float64, and rows whose stride is a multiple of 16 bytes (torch 2.13)."""
    if rows.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    step = 16 // rows.element_size()
    return rows.shape[1] % step == 0 and weights.shape[2] % step == 0


def _written_out(tensor: Tensor) -> Tensor:
    """The same tensor, with every number in a place of its own; and so are its gradients of every order.

    The gradient of a plain sum is one number that claims to be many, which `grouped_mm` refuses.
    """
    result: Tensor = _WrittenOut.apply(tensor)  # type: ignore[no-untyped-call]
    return result


class _WrittenOut(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor) -> Tensor:
        return tensor.contiguous() if 0 in tensor.stride() else tensor.view_as(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _written_out(gradient)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _written_out(tangent)
