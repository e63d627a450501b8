"""Grouped products obey one law suite, and the suite finds those that do not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_moe import cpu_products, group_rows, grouped_product, loop_product, products
from janus_moe.products import kernel_product
from janus_moe.testing import check_grouped_product, naive_product

PRODUCTS = [loop_product, grouped_product, kernel_product]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("product", PRODUCTS)
def test_products_obey_the_laws(product, dtype):
    check_grouped_product(product, dtype)


@given(st.lists(st.integers(0, 4), max_size=5), st.integers(1, 9), st.integers(1, 9))
def test_products_equal_a_loop_over_rows_for_any_shape(counts, inputs, outputs):
    groups = group_rows(range(1, len(counts) + 1), counts)
    generator = torch.Generator().manual_seed(len(counts))
    rows = torch.randn(sum(counts), inputs, generator=generator)
    weights = torch.randn(len(groups.counts), inputs, outputs, generator=generator)
    expected = naive_product(rows.double(), weights.double(), groups)
    for product in PRODUCTS:
        found = product(rows, weights, groups)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "inputs", "outputs", "fits"),
    [
        (torch.float32, 8, 4, True),
        (torch.bfloat16, 8, 16, True),
        (torch.float64, 8, 8, False),
        (torch.float32, 6, 4, False),
        (torch.float32, 4, 6, False),
        (torch.bfloat16, 12, 8, False),
    ],
)
def test_the_kernel_is_used_where_it_fits_and_only_there(monkeypatch, dtype, inputs, outputs, fits):
    calls = []
    kernel = products.grouped_mm
    monkeypatch.setattr(products, "grouped_mm", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    rows, weights = torch.ones(3, inputs, dtype=dtype), torch.ones(2, inputs, outputs, dtype=dtype)
    result = kernel_product(rows, weights, group_rows([1, 8], [2, 1]))
    assert torch.equal(result, torch.full((3, outputs), float(inputs), dtype=dtype))
    assert bool(calls) == fits


def test_weights_without_rows_get_zero_gradients_not_none():
    rows, weights = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4, 4, requires_grad=True)
    total = grouped_product(rows, weights, group_rows([], [])).sum()
    gradients = torch.autograd.grad(total, (rows, weights))
    assert [tuple(gradient.shape) for gradient in gradients] == [(0, 4), (0, 4, 4)]


@pytest.mark.parametrize("product", PRODUCTS)
def test_plain_sums_of_values_and_of_gradients_can_be_differentiated(product):
    rows, weights = torch.ones(3, 8, requires_grad=True), torch.ones(2, 8, 4, requires_grad=True)
    value = product(rows, weights, group_rows([1, 8], [1, 2])).sum()
    slopes = torch.autograd.grad(value, (rows, weights), create_graph=True)
    assert torch.equal(slopes[0], torch.full((3, 8), 4.0))
    assert torch.equal(slopes[1], torch.tensor([1.0, 2.0])[:, None, None].expand(2, 8, 4))
    curvatures = torch.autograd.grad(slopes[0].sum() + slopes[1].sum(), (rows, weights))
    assert torch.equal(curvatures[0], torch.full((3, 8), 4.0))
    assert torch.equal(curvatures[1], torch.tensor([1.0, 2.0])[:, None, None].expand(2, 8, 4))


@pytest.mark.parametrize("turned", [False, True], ids=["as_used", "transposed"])
def test_gradients_that_are_collected_in_a_pass_are_those_of_that_pass_alone(turned):
    groups, generator = group_rows([1, 8], [1, 3]), torch.Generator().manual_seed(0)
    rows = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    stored = torch.randn(2, *((6, 5) if turned else (5, 6)), generator=generator, dtype=torch.float64)
    stored.requires_grad_()

    def loss_of(product):
        value = product(rows, stored.mT if turned else stored, groups)
        (slope,) = torch.autograd.grad(value.sin().sum(), rows, create_graph=True)
        return value.cos().sum() + slope.square().sum()

    expected = torch.autograd.grad(loss_of(loop_product), (rows, stored))
    loss = loss_of(grouped_product)

    def broken(_):
        raise RuntimeError("a pass that ends early")

    hook = stored.register_hook(broken)
    with pytest.raises(RuntimeError, match="ends early"):
        loss.backward(retain_graph=True)
    hook.remove()
    for wanted in ((0,), (0, 1), (1,), (0, 1)):
        leaves = [(rows, stored)[which] for which in wanted]
        for which, found in zip(wanted, torch.autograd.grad(loss, leaves, retain_graph=True), strict=True):
            torch.testing.assert_close(found, expected[which], rtol=1e-13, atol=1e-13)


def test_gradients_of_matrices_that_nobody_asks_for_are_not_computed(monkeypatch):
    rows, weights = torch.ones(3, 4, requires_grad=True), torch.ones(2, 4, 8, requires_grad=True)
    products_of = []
    plain = cpu_products._outer_products
    monkeypatch.setattr(cpu_products, "_outer_products", lambda *a: products_of.append(1) or plain(*a))
    value = grouped_product(rows, weights, group_rows([1, 8], [1, 2]))
    torch.autograd.grad(value, rows, torch.ones_like(value), create_graph=True)
    assert not products_of
    torch.autograd.grad(value, weights, torch.ones_like(value))
    assert products_of


def shifted_product(rows, weights, groups):
    return loop_product(rows, weights.roll(1, 0), groups)


def product_without_weight_gradients(rows, weights, groups):
    return loop_product(rows, weights.detach(), groups)


class WrongSecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, weights, counts):
        ctx.save_for_backward(rows, weights)
        ctx.counts = counts
        return loop_product(rows, weights, group_rows(range(1, len(counts) + 1), counts))

    @staticmethod
    def backward(ctx, gradient):
        rows, weights = ctx.saved_tensors
        groups = group_rows(range(1, len(ctx.counts) + 1), ctx.counts)
        to_rows = loop_product(gradient, weights.detach().transpose(1, 2), groups)
        parts = zip(rows.split(ctx.counts), gradient.split(ctx.counts), strict=True) if ctx.counts else ()
        to_weights = [x.T @ y for x, y in parts]
        return to_rows, torch.stack(to_weights) if to_weights else torch.zeros_like(weights), None


def product_with_a_wrong_second_derivative(rows, weights, groups):
    return WrongSecondDerivative.apply(rows, weights, groups.counts)


@pytest.mark.parametrize(
    ("broken", "order"),
    [
        (shifted_product, "order 0"),
        (product_without_weight_gradients, "order 1"),
        (product_with_a_wrong_second_derivative, "order 2"),
    ],
)
def test_the_law_suite_finds_broken_products(broken, order):
    with pytest.raises(AssertionError, match=order):
        check_grouped_product(broken, torch.float64)


def test_the_law_suite_finds_a_wrong_dtype():
    with pytest.raises(AssertionError, match="float32"):
        check_grouped_product(lambda r, w, g: loop_product(r.float(), w.float(), g), torch.float64)
