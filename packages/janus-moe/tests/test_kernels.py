"""The Triton product is the plain one, in its values and in derivatives of every order.

Where there is no GPU the kernels run in Triton's interpreter, a hundred milliseconds a launch: few and small cases.
"""

import importlib
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from janus_moe import MoELayer, group_rows, loop_product
from janus_moe.testing import check_grouped_product, derivatives, naive_product

triton = pytest.importorskip("triton", reason="Triton is for Linux")

from janus_moe import kernels  # noqa: E402
from janus_moe.kernels import triton_product  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def drawn(counts, inputs, outputs, dtype=torch.float64):
    groups = group_rows(range(1, len(counts) + 1), counts, DEVICE)
    generator = torch.Generator().manual_seed(sum(counts) + inputs + outputs)
    rows = torch.randn(sum(counts), inputs, generator=generator, dtype=torch.float64)
    weights = torch.randn(len(groups.counts), inputs, outputs, generator=generator, dtype=torch.float64)
    return groups, rows.to(DEVICE, dtype), weights.to(DEVICE, dtype)


def require_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            # Products of tens of terms, rounded once each, and a sum of that many in what they are multiplied with.
            scale = 1 + float(b.detach().abs().max()) if b.numel() else 1
            torch.testing.assert_close(a, b, rtol=0, atol=1e3 * torch.finfo(b.dtype).eps * scale)


def test_the_triton_product_obeys_the_laws():
    check_grouped_product(triton_product, torch.float32, DEVICE)


@settings(max_examples=5)
@given(st.lists(st.integers(0, 4), max_size=4), st.integers(1, 20), st.integers(1, 20))
def test_values_and_gradients_are_those_of_a_loop_over_rows_for_any_shape(counts, inputs, outputs):
    groups, rows, weights = drawn(counts, inputs, outputs)
    found = derivatives(lambda x, w: triton_product(x, w, groups), (rows, weights), orders=1)
    require_equal(found, derivatives(lambda x, w: naive_product(x, w, groups), (rows, weights), orders=1))


@pytest.mark.parametrize(
    ("counts", "inputs", "outputs"),
    [((70,), 33, 65), ((3, 130, 1), 5, 3), ((64, 64), 32, 64)],
    ids=["one group beyond a tile", "a group of three tiles", "whole tiles"],
)
def test_tiles_that_are_full_or_not_change_nothing(counts, inputs, outputs):
    groups, rows, weights = drawn(counts, inputs, outputs)
    found = derivatives(lambda x, w: triton_product(x, w, groups), (rows, weights), orders=1)
    require_equal(found, derivatives(lambda x, w: loop_product(x, w, groups), (rows, weights), orders=1))


def test_groups_of_several_chunks_are_added_up(monkeypatch):
    monkeypatch.setattr(kernels, "_CHUNK_ROWS", 4)
    groups, rows, weights = drawn((9, 4, 1), 5, 3)
    found = derivatives(lambda x, w: triton_product(x, w, groups), (rows, weights), orders=2)
    require_equal(found, derivatives(lambda x, w: loop_product(x, w, groups), (rows, weights), orders=2))


def test_rows_and_weights_in_any_memory_order_give_the_same():
    groups, rows, weights = drawn((3, 2), 6, 4)
    strided = torch.stack([rows, rows], dim=2)[..., 1], weights.mT.contiguous().mT
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert torch.equal(triton_product(*strided, groups), triton_product(rows, weights, groups))


def test_forward_derivatives_are_those_of_the_plain_product_and_can_be_taken_back():
    _, rows, weights = drawn((3, 2), 6, 4)
    leaves = (rows.requires_grad_(), weights.requires_grad_())
    along = (torch.cos(rows.detach()), torch.cos(weights.detach()))

    def carried_and_back(product):
        def function(x, w):
            return torch.sin(
                product(x, w, group_rows([1, 2], [3, 2], DEVICE))
            )  # as a model does it, in its forward pass

        value, tangent = torch.func.jvp(function, leaves, along)
        return [[tangent], torch.autograd.grad(tangent.square().sum() + value.sum(), leaves)]

    require_equal(carried_and_back(triton_product), carried_and_back(loop_product))


def test_a_layer_with_the_triton_product_is_the_layer():
    groups = group_rows([1, 8], [3, 2], DEVICE)
    plain = MoELayer(8, 4, 2, 3, 4).double().to(DEVICE)
    layer = MoELayer(8, 4, 2, 3, 4, product=triton_product).double().to(DEVICE)
    layer.load_state_dict(plain.state_dict())
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(DEVICE)
    found = derivatives(lambda x: layer(x, groups), [rows], orders=2)
    require_equal(found, derivatives(lambda x: plain(x, groups), [rows], orders=2))


class NoReadingOfNumbers(TorchDispatchMode):
    """Fails where a tensor's number is read by the host, which on a GPU waits for all that came before."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function != torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_the_host_reads_no_number():
    groups, rows, weights = drawn((3, 2), 6, 4)
    leaves = (rows.requires_grad_(), weights.requires_grad_())
    with pytest.raises(AssertionError), NoReadingOfNumbers():
        rows.sum().item()
    with NoReadingOfNumbers():
        slopes = torch.autograd.grad(triton_product(*leaves, groups).square().sum(), leaves, create_graph=True)
        slopes[1].square().sum().backward()


def test_other_precisions_are_refused():
    groups, rows, weights = drawn((2,), 4, 4, torch.bfloat16)
    with pytest.raises(ValueError, match=r"float32 or float64, and this tensor is torch\.bfloat16"):
        triton_product(rows, weights, groups)


def test_a_cpu_is_refused_outside_the_interpreter(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="this tensor is on 'cpu'; move model and graph to 'cuda'"):
        triton_product(torch.ones(2, 4), torch.ones(1, 4, 4), group_rows([1], [2]))


def test_without_triton_the_kernels_say_what_they_need(monkeypatch):
    monkeypatch.delitem(sys.modules, "janus_moe.kernels")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match="need the package triton"):
        importlib.import_module("janus_moe.kernels")
