"""Weights taken from a store: those of the naive loop, in values and derivatives, under function transforms too."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_moe import MoELayer, group_rows, grouped_product, loop_product
from janus_moe.testing import derivatives
from janus_moe.weights import select_experts, select_scaled_experts

selections = st.integers(1, 5).flatmap(
    lambda experts: st.tuples(st.just(experts), st.lists(st.integers(0, experts - 1), max_size=6))
)


def numbers(*shape):
    return torch.sin(1 + torch.arange(torch.Size(shape).numel(), dtype=torch.float64)).reshape(shape)


@given(selections, st.integers(1, 3), st.integers(1, 3))
def test_weights_and_three_derivatives_are_those_of_a_loop_over_what_is_selected(selection, hidden, width):
    experts, chosen = selection
    index, scales = torch.tensor(chosen, dtype=torch.int64), numbers(len(chosen))

    def loop(store, scales):
        weights = [scales[place] * store[expert] for place, expert in enumerate(chosen)]
        return torch.stack(weights) if weights else store[:0] * 1.0

    def unscaled(store, scales):
        return loop(store, torch.ones_like(scales))

    inputs = (numbers(experts, hidden, width), scales)
    for ours, naive in (
        (lambda store, scales: select_scaled_experts(store, index, scales), loop),
        (lambda store, scales: select_experts(store, index), unscaled),
    ):
        for a, b in zip(derivatives(ours, inputs), derivatives(naive, inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_of_a_store_is_a_sum_over_places_and_exactly_zero_elsewhere(dtype):
    store, scales = numbers(4, 2, 3).to(dtype).requires_grad_(), torch.tensor([2.0, 4.0, 8.0], dtype=dtype)
    selected = torch.tensor([3, 1, 3])
    # Not differentiated again: the way that training takes.
    (found,) = torch.autograd.grad(select_scaled_experts(store, selected, scales).sum(), store)
    assert found.dtype == dtype
    assert found[:, 0, 0].tolist() == [0.0, 4.0, 0.0, 10.0]
    assert torch.equal(found, found[:, :1, :1].expand_as(found))
    assert found.is_contiguous()


@pytest.mark.parametrize("product", [loop_product, grouped_product])
def test_forward_derivatives_and_batches_of_gradients_equal_backward_ones(product):
    layer, groups = MoELayer(4, 3, 2, 3, 4, product).double(), group_rows([1, 8], [1, 2])
    parameters = {name: value.detach() for name, value in layer.named_parameters()}

    def outputs(parameters, rows):
        return torch.func.functional_call(layer, parameters, (rows, groups)).sin().sum(0)

    forward = torch.func.jacfwd(outputs, argnums=(0, 1))(parameters, numbers(3, 4))
    backward = torch.func.jacrev(outputs, argnums=(0, 1))(parameters, numbers(3, 4))
    torch.testing.assert_close(forward, backward, rtol=1e-12, atol=1e-12)

    stored = [layer.experts.gate_up, layer.experts.down]
    batched = torch.autograd.grad(
        outputs(dict(layer.named_parameters()), numbers(3, 4)),
        stored,
        torch.eye(4, dtype=torch.float64),
        is_grads_batched=True,
    )
    for name, found in zip(("experts.gate_up", "experts.down"), batched, strict=True):
        torch.testing.assert_close(found, backward[0][name], rtol=1e-12, atol=1e-12)
