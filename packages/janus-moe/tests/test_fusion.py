"""A fused function is the plain one, in its values and in derivatives of every order.

What strings the three kernels together is tested with a compiler that changes nothing, on many functions; one function
goes through torch's compiler, without the code generator that needs a toolchain.
"""

import pytest
import torch

from janus_moe import MoELayer, fused, gated_silu, group_rows
from janus_moe.fusion import twice_differentiable
from janus_moe.testing import derivatives


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scaled_norm(features, weight):
    return features * torch.rsqrt(features.square().mean(dim=1, keepdim=True) + 1e-5) * weight


def softmax_with_a_sink(scores, envelope):
    shift = scores.detach().amax(dim=1, keepdim=True).clamp(min=0)
    weights = envelope * torch.exp(scores - shift)
    return weights / (torch.exp(-shift) + weights.sum(dim=1, keepdim=True))


FUNCTIONS = {
    "gated silu": (gated_silu, (rows(4, 6),)),
    "no rows": (gated_silu, (rows(0, 6),)),
    "norm": (scaled_norm, (rows(3, 5), rows(5, seed=1))),
    "softmax": (softmax_with_a_sink, (rows(3, 4), rows(3, 4, seed=1).abs())),
    "one input twice": (lambda x, y: x * y, (rows(3),) * 2),
}


def as_it_is(function):
    return function


@pytest.mark.parametrize(("function", "inputs"), FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_values_and_three_derivatives_are_those_of_the_plain_function(function, inputs):
    found = derivatives(twice_differentiable(function, as_it_is), inputs)
    expected = derivatives(function, inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("function", "inputs"), FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_derivatives_are_the_limit_of_finite_differences(function, inputs):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    either = twice_differentiable(function, as_it_is)
    assert torch.autograd.gradcheck(either, leaves)
    assert torch.autograd.gradgradcheck(either, leaves)


def test_the_three_functions_that_are_compiled_are_the_ones_that_run():
    compiled, ran = [], []

    def compile_function(function):
        compiled.append(function.__name__)

        def run(*inputs):
            ran.append(function.__name__)
            return function(*inputs)

        return run

    activation = twice_differentiable(gated_silu, compile_function)
    assert compiled == ["gated_silu", "gradient", "curvature"]
    gate_up = rows(2, 4).requires_grad_()
    (slope,) = torch.autograd.grad(activation(gate_up).sum(), gate_up, create_graph=True)
    slope.square().sum().backward()
    assert ran == ["gated_silu", "gradient", "curvature"]


def test_inputs_that_need_no_gradient_get_none():
    weight = rows(5, seed=1)
    features = rows(3, 5).requires_grad_()
    twice_differentiable(scaled_norm, as_it_is)(features, weight).sum().backward()
    assert features.grad is not None
    assert weight.grad is None


def test_a_layer_with_a_fused_activation_is_the_layer(monkeypatch):
    # "aot_eager" traces as the real compiler does and runs torch's own operations: no toolchain, seconds less.
    plain_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: plain_compile(f, dynamic=dynamic, backend="aot_eager"))
    groups = group_rows([1, 8], [3, 2])
    plain = MoELayer(8, 4, 2, 3, 4).double()
    layer = MoELayer(8, 4, 2, 3, 4, activation=fused(gated_silu)).double()
    layer.load_state_dict(plain.state_dict())
    found = derivatives(lambda x: layer(x, groups), [rows(5, 8)], orders=2)
    expected = derivatives(lambda x: plain(x, groups), [rows(5, 8)], orders=2)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
