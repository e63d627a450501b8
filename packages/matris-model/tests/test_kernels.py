"""Attentions by Triton kernels are those of the tables, and both are those of a loop over pairs, in every derivative.

Where there is no GPU the kernels run in Triton's interpreter, some hundred milliseconds a launch: few and small cases.
"""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from attention_cases import (
    DEVICE,
    edge_inputs,
    edges_by_loops,
    near_by_loops,
    near_inputs,
    plan_of,
)
from janus_graph import build_graph, no_halo
from janus_moe.testing import derivatives
from matris_model import PLAIN, MatRISMoE, checkpoint_block, triton_formulas
from matris_model.geometry import graph_geometry
from matris_model.testing.gradients import ForceMatching, gradients_by_double_backward, gradients_by_tangent
from model_cases import EVERYWHERE, TINY, molecule, random_structure, stirred

triton = pytest.importorskip("triton", reason="Triton is for Linux")

from matris_model.kernels.derivatives import differentiable  # noqa: E402
from matris_model.kernels.edge_attention import EdgeKernels  # noqa: E402
from matris_model.kernels.near_attention import NearKernels  # noqa: E402

# Several atoms, one without edges, one with a single one, and more edges than a tile has.
COUNTS = [3, 0, 18, 1, 2]


def by_kernels(kernels):
    return lambda *inputs: differentiable(kernels, *inputs)


def require_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            # Sums and products of hundreds of terms, whose largest may cancel.
            scale = 1 + float(b.detach().abs().max()) if b.numel() else 1
            torch.testing.assert_close(a, b, rtol=0, atol=1e4 * torch.finfo(b.dtype).eps * scale)


@pytest.mark.parametrize("functions", [1, 4])
def test_attention_among_near_edges_and_two_derivatives_are_those_of_a_loop_over_pairs(functions):
    kernels = NearKernels(plan_of([3, 0, 1, 4], near=True))
    inputs = near_inputs(kernels.near, 2, 3, functions)
    starts = kernels.near.starts.tolist()
    expected = derivatives(lambda *x: near_by_loops(starts, 2, *x), inputs, orders=2)
    require_equal(derivatives(kernels.plain, inputs, orders=2), expected)
    require_equal(derivatives(by_kernels(kernels), inputs, orders=2), expected)


def test_attention_over_messages_and_two_derivatives_are_those_of_a_loop_over_edges():
    kernels = EdgeKernels(plan_of([3, 0, 1, 4], near=False))
    inputs = edge_inputs(kernels.around, 2, 5)
    starts = kernels.around.starts.tolist()
    expected = derivatives(lambda *x: edges_by_loops(starts, *x), inputs, orders=2)
    require_equal(derivatives(kernels.plain, inputs, orders=2), expected)
    require_equal(derivatives(by_kernels(kernels), inputs, orders=2), expected)


def test_more_edges_than_a_tile_has_change_nothing():
    near, around = NearKernels(plan_of(COUNTS, near=True)), EdgeKernels(plan_of(COUNTS, near=False))
    for kernels, inputs in ((near, near_inputs(near.near, 1, 3, 2)), (around, edge_inputs(around.around, 2, 70))):
        found = derivatives(by_kernels(kernels), inputs, orders=2)
        require_equal(found, derivatives(kernels.plain, inputs, orders=2))


@settings(max_examples=5)
@given(st.lists(st.integers(0, 5), max_size=3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5))
def test_values_and_gradients_are_those_of_the_tables_for_any_shape(counts, heads, size, functions):
    near, around = NearKernels(plan_of(counts, near=True)), EdgeKernels(plan_of(counts, near=False))
    found = derivatives(by_kernels(around), edge_inputs(around.around, heads, size), orders=1)
    require_equal(found, derivatives(around.plain, edge_inputs(around.around, heads, size), orders=1))
    inputs = near_inputs(near.near, heads, size, functions)
    found = derivatives(by_kernels(near), inputs, orders=1)
    if near.near.shapes:  # the tables of nothing cannot be collected
        require_equal(found, derivatives(near.plain, inputs, orders=1))
    else:
        require_equal(found, [[torch.zeros_like(inputs[0][:, : heads * size])], [torch.zeros_like(x) for x in inputs]])


def small(which):
    if which == "near":
        kernels = NearKernels(plan_of([3, 2], near=True))
        return kernels, near_inputs(kernels.near, 1, 2, 3)
    kernels = EdgeKernels(plan_of([2, 0, 3], near=False))
    return kernels, edge_inputs(kernels.around, 2, 3)


def test_third_derivatives_are_those_of_the_tables():
    kernels, inputs = small("around")
    found = derivatives(by_kernels(kernels), inputs, orders=3)
    require_equal(found, derivatives(kernels.plain, inputs, orders=3))


@pytest.mark.parametrize("which", ["near", "around"])
def test_forward_derivatives_go_back_and_gradients_go_forward(which):
    kernels, inputs = small(which)
    along = [torch.cos(tensor) for tensor in inputs]

    def derivatives_of(function):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        moves = [tensor.clone().requires_grad_() for tensor in along]
        value, tangent = torch.func.jvp(function, tuple(leaves), tuple(moves))
        back = torch.autograd.grad(value.square().sum() + tangent.square().sum(), [*leaves, *moves])

        def gradient(*x):
            value, back = torch.func.vjp(function, *x)
            return back(torch.sin(value))

        forward = torch.func.jvp(gradient, tuple(inputs), tuple(along))[1]
        return [[tangent], back, forward]

    require_equal(derivatives_of(by_kernels(kernels)), derivatives_of(kernels.plain))


def test_logits_whose_exponentials_no_float_holds_stay_finite_and_right():
    kernels, (rows, directions, coefficients) = small("near")
    inputs = (10 * rows, directions.clamp(min=0.1), 10 * coefficients)
    products = inputs[0][:, :2] @ inputs[0][:, 2:4].T / 2**0.5
    assert float(products.max()) > 89
    found = derivatives(by_kernels(kernels), [x.float() for x in inputs], orders=2)
    expected = derivatives(kernels.plain, [x.float().double() for x in inputs], orders=2)
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            # Logits of some hundred are rounded before they are powers, and in each derivative.
            torch.testing.assert_close(a.double(), b, rtol=0, atol=1e3 * 2**-23 * (1 + float(b.abs().max())))


@pytest.mark.parametrize("which", ["near", "around"])
def test_a_value_keeps_nothing_but_its_inputs(which):
    kernels, inputs = small(which)
    leaves, kept = [tensor.requires_grad_() for tensor in inputs], []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        differentiable(kernels, *leaves)
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in inputs}


class NoReadingOfNumbers(TorchDispatchMode):
    """Fails where a tensor's number is read by the host, which on a GPU waits for all that came before."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function != torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("which", ["near", "around"])
def test_the_host_reads_no_number(which):
    kernels, inputs = small(which)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    with NoReadingOfNumbers():
        slopes = torch.autograd.grad(differentiable(kernels, *leaves).square().sum(), leaves, create_graph=True)
        slopes[0].square().sum().backward()


CONFIG = TINY.replace(blocks=1, heads=1, edge_width=4)
GRAPH = build_graph(
    [
        random_structure(2, 1, (1, 1, 1), EVERYWHERE),
        molecule([8, 6, 8], [[-1.2, 0, 0], [0, 0, 0], [1.3, 0, 0]], charge=1, spin=2, task=1),
        molecule([8], [[0, 0, 0]]),
    ],
    CONFIG.cutoff,
    CONFIG.near_cutoff,
)


def properties_and_gradients(model, graph):
    """Energies, forces and magnetic moments, and every parameter's gradient of a loss of them."""
    model.zero_grad()
    found = model(graph, ("energy", "forces", "magmoms"))
    loss = found.energy.square().sum() + found.forces.square().sum() + found.magmoms.square().sum()
    loss.backward()
    return [[found.energy, found.forces, found.magmoms], [parameter.grad for parameter in model.parameters()]]


def test_a_model_with_kernels_is_the_model():
    graph, plain = GRAPH.to(DEVICE), stirred(CONFIG).to(DEVICE)
    model = MatRISMoE(CONFIG, 0, triton_formulas(), checkpoint_block).double().to(DEVICE)
    model.load_state_dict(plain.state_dict())
    require_equal(properties_and_gradients(model, graph), properties_and_gradients(plain, graph))


def test_the_tangent_route_through_kernels_gives_the_gradients_of_double_backward_without():
    molecule_alone = molecule([8, 6, 8], [[-1.2, 0, 0], [0, 0, 0], [1.3, 0, 0]])
    graph = build_graph([molecule_alone], CONFIG.cutoff, CONFIG.near_cutoff).to(DEVICE)
    plain, model = stirred(CONFIG).to(DEVICE), MatRISMoE(CONFIG, 0, triton_formulas()).double().to(DEVICE)
    loss = ForceMatching.around(graph, plain(graph, ("energy", "forces", "stress")).detach(), np.random.default_rng(0))
    weights = {name: weight.detach() for name, weight in plain.named_parameters()}
    model.load_state_dict(plain.state_dict())
    found = gradients_by_tangent(model, graph, loss, weights)
    expected = gradients_by_double_backward(plain, graph, loss, weights)
    require_equal([found.values()], [expected.values()])


def test_kernels_need_no_tables():
    geometries = [graph_geometry(GRAPH, CONFIG, torch.float64, no_halo, f.tables) for f in (PLAIN, triton_formulas())]
    assert [bool(geometry.near_tables and geometry.around_tables) for geometry in geometries] == [True, False]


def test_what_is_no_kernel_stays_as_it_was():
    norm = lambda features, weight: features * weight  # noqa: E731
    formulas = triton_formulas(replace(PLAIN, norm=norm))
    assert formulas.norm is norm
    assert formulas.activation is PLAIN.activation
    assert formulas.product is PLAIN.product


def test_a_cpu_is_refused_outside_the_interpreter(monkeypatch):
    model = MatRISMoE(CONFIG, 0, triton_formulas())
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="this tensor is on 'cpu'; move model and graph to 'cuda'"):
        model(GRAPH)


def test_without_triton_there_are_other_formulas_and_a_reason(monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("janus_moe.kernels", "matris_model.kernels"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match=r"need the package triton.* or fused_formulas\(\)"):
        triton_formulas()
