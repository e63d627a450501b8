"""Oracles and laws for whoever brings a product, a router or a layer of their own. Plain torch; slow on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from janus_moe.groups import ElementGroups, group_rows
from janus_moe.layer import MoELayer
from janus_moe.products import GroupedProduct


def naive_layer(layer: MoELayer, rows: Float[Tensor, "rows width"], atomic_numbers: Sequence[int]) -> Tensor:
    """What `layer` should give for rows of any elements in any order, row by row and expert by expert, in float64.

    Reads the layer's parameters and runs none of its code, so it is an oracle for values; it is made of differentiable
    operations, so it is one for derivatives of every order too.

    Args:
        layer: the layer.
        rows: rows in any order.
        atomic_numbers: element of each row.
    """
    selection, logits = layer.router.selection.tolist(), layer.router.logits.double()
    first, second = layer.experts.gate_up.double(), layer.experts.down.double()
    shared_first, shared_second = layer.shared.gate_up.double(), layer.shared.down.double()
    shared_hidden = shared_second.shape[0]
    results = []
    for row, z in zip(rows.double(), atomic_numbers, strict=True):
        gate, up = row @ shared_first[:, :shared_hidden], row @ shared_first[:, shared_hidden:]
        result = (gate * torch.sigmoid(gate) * up) @ shared_second
        total = sum(torch.exp(logits[z, expert]) for expert in selection[z])
        for expert in range(first.shape[0]):
            if expert in selection[z]:
                gate, up = first[expert, 0] @ row, first[expert, 1] @ row
                weight = torch.exp(logits[z, expert]) / total
                result = result + weight * ((gate * torch.sigmoid(gate) * up) @ second[expert])
        results.append(result)
    return torch.stack(results) if results else rows.double() * 1.0


def naive_product(rows: Tensor, weights: Tensor, groups: ElementGroups) -> Tensor:
    """`rows[r] @ weights[g]` one row at a time."""
    owner = [group for group, count in enumerate(groups.counts) for _ in range(count)]
    results = [row @ weights[group] for row, group in zip(rows, owner, strict=True)]
    return torch.stack(results) if results else rows.new_zeros(0, weights.shape[2])


def check_grouped_product(
    product: GroupedProduct, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> None:
    """Puts a grouped product through its laws: values and first, second and third derivatives.

    Values and directional derivatives are compared with `naive_product` in float64, for several numbers of rows (none,
    too), groups and sizes, those that suit fast kernels and those that do not. In float64 the first and second
    derivatives are also compared with finite differences.

    Args:
        product: what to check.
        dtype: precision to check it in; tolerances follow from it.
        device: where to check it.

    Raises:
        AssertionError: a law is broken; the message says which and for what shapes.
    """
    for counts, inputs, outputs in _CASES:
        groups = group_rows(range(1, len(counts) + 1), counts, device)
        generator = torch.Generator().manual_seed(sum(counts) + inputs + outputs)
        rows = torch.randn(sum(counts), inputs, generator=generator, dtype=torch.float64)
        weights = torch.randn(len(groups.counts), inputs, outputs, generator=generator, dtype=torch.float64)
        # Both sides start from the same rounded numbers; what differs is how they are multiplied.
        rows, weights = rows.to(device, dtype), weights.to(device, dtype)
        case = f"rows per group {counts}, weights [{inputs}, {outputs}], {dtype}"
        found = derivatives(lambda x, w, plan=groups: product(x, w, plan), (rows, weights))
        expected = derivatives(lambda x, w, plan=groups: naive_product(x, w, plan), (rows.double(), weights.double()))
        _compare(found, expected, dtype, case)
        if dtype == torch.float64:
            inputs_of_check = (rows.requires_grad_(), weights.requires_grad_())
            torch.autograd.gradcheck(lambda x, w, plan=groups: product(x, w, plan), inputs_of_check)
            torch.autograd.gradgradcheck(lambda x, w, plan=groups: product(x, w, plan), inputs_of_check)


def derivatives(function: Callable[..., Tensor], inputs: Sequence[Tensor], orders: int = 3) -> list[list[Tensor]]:
    """Values and derivatives of the orders 1 … `orders` of a function, along fixed directions.

    Order 0 is `[y]`. Order n + 1 is the gradient of `Σ d · ∇ⁿ` in all inputs, from `Σ sin(y)` on, so every order mixes
    the ones before and none of them is zero by linearity. Two functions that are equal give equal lists.
    """
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    value = function(*leaves)
    results, scalar = [[value.detach()]], torch.sin(value).sum()
    for _ in range(orders):
        # What does not depend on the leaves at all has zeros for derivatives, as torch sees it too with this term.
        scalar = scalar + sum(0.0 * leaf.sum() for leaf in leaves)
        gradients = torch.autograd.grad(scalar, leaves, create_graph=True)
        results.append([gradient.detach() for gradient in gradients])
        scalar = torch.stack([(_direction(gradient) * gradient).sum() for gradient in gradients]).sum()
    return results


# Rows of each group, then what weights map from and to. Kernels like multiples of 16 bytes; 3, 5 and 7 are none.
_CASES: tuple[tuple[tuple[int, ...], int, int], ...] = (
    ((), 8, 8),
    ((0, 0), 8, 16),
    ((1,), 8, 8),
    ((3,), 3, 5),
    ((2, 0, 5), 8, 16),
    ((1, 1, 1, 4), 16, 8),
    ((4, 3), 7, 8),
    ((4, 3), 8, 7),
)


def _direction(like: Tensor) -> Tensor:
    """Numbers between 1/2 and 3/2 that depend on the place alone."""
    places = torch.arange(like.numel(), device=like.device, dtype=torch.float64)
    return (1 + torch.sin(1 + places) / 2).to(like.dtype).reshape(like.shape)


def _compare(
    found: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]], dtype: torch.dtype, case: str
) -> None:
    for order, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        for which, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert a.shape == b.shape, f"order {order}, input {which}: shape {a.shape}, not {b.shape}; {case}"
            assert a.dtype == dtype, f"order {order}, input {which}: {a.dtype}; {case}"
            if not b.numel():
                continue
            scale = max(float(b.abs().max()), 1.0)
            error = float((a.double() - b).abs().max())
            # Each order multiplies once more, and each product rounds; reductions here are over tens of terms.
            allowed = 64 * (1 + order) * torch.finfo(dtype).eps * scale
            assert error <= allowed, f"derivative of order {order}, input {which}: off by {error:.1e}; {case}"
