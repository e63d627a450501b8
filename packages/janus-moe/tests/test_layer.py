"""The layer equals a double loop over rows and experts, in its values and in derivatives of every order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_moe import MoELayer, SwiGLU, group_rows, grouped_product, loop_product
from janus_moe.testing import derivatives, naive_layer
from moe_cases import Case, cases, stirred_layer

EDGES = {
    "no row": Case(4, 3, 2, 3, 4, {}, 0),
    "one row": Case(4, 3, 2, 3, 4, {26: 1}, 1),
    "one element": Case(4, 3, 2, 3, 4, {8: 5}, 2),
    "one expert": Case(4, 1, 1, 3, 4, {1: 2, 8: 1}, 3),
    "every expert": Case(4, 5, 5, 3, 4, {1: 2, 8: 1, 118: 2}, 4),
    "a group without rows": Case(4, 3, 2, 3, 4, {1: 2, 6: 0, 8: 1}, 5),
}


@given(cases())
def test_layer_equals_a_loop_over_rows_and_experts(case):
    layer, rows = case.layer(), case.rows()
    torch.testing.assert_close(
        layer(rows, case.groups()), naive_layer(layer, rows, case.atomic_numbers()), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("case", EDGES.values(), ids=EDGES.keys())
def test_derivatives_of_order_one_two_and_three_equal_those_of_the_loop(case):
    layer, groups, elements = case.layer(), case.groups(), case.atomic_numbers()
    names = list(dict(layer.named_parameters()))

    def ours(rows, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (rows, groups))

    def naive(rows, *parameters):
        for name, parameter in zip(names, parameters, strict=True):
            owner, _, leaf = name.rpartition(".")
            module = twin.get_submodule(owner)
            del module._parameters[leaf]
            setattr(module, leaf, parameter)
        return naive_layer(twin, rows, elements)

    twin = stirred_layer(case)
    inputs = (case.rows(), *layer.parameters())
    found, expected = derivatives(ours, inputs), derivatives(naive, inputs)
    for order, (a, b) in enumerate(zip(found, expected, strict=True)):
        for name, x, y in zip(["rows", *names] if order else ["value"], a, b, strict=True):
            scale = max(1.0, float(y.abs().max()) if y.numel() else 1.0)
            torch.testing.assert_close(
                x, y, rtol=0, atol=1e-11 * scale, msg=lambda m, what=(order, name): f"order {what[0]}, {what[1]}: {m}"
            )


def test_gradients_are_the_limit_of_finite_differences():
    case = Case(3, 4, 2, 2, 2, {1: 1, 8: 2}, 6)
    layer, groups = case.layer(), case.groups()
    names = [name for name, _ in layer.named_parameters()]

    def value(rows, *parameters):
        rest = dict(layer.named_parameters()) | dict(zip(names[-3:], parameters, strict=True))
        return torch.func.functional_call(layer, rest, (rows, groups)).square().sum()

    inputs = [case.rows().requires_grad_(), *list(layer.parameters())[-3:]]
    assert torch.autograd.gradcheck(value, inputs)
    assert torch.autograd.gradgradcheck(value, inputs)


@given(cases())
def test_experts_that_no_present_element_selects_get_exactly_zero_gradient(case):
    layer, groups = case.layer(), case.groups()
    loss = layer(case.rows(), groups).sin().sum()
    gradients = torch.autograd.grad(loss, [*layer.experts.parameters(), layer.router.logits])
    used = set(layer.router.selection[groups.elements].flatten().tolist())
    idle = [expert for expert in range(case.experts) if expert not in used]
    absent = [z for z in range(119) if z not in groups.elements.tolist()]
    for gradient in gradients[:2]:
        assert not gradient[idle].any()
        assert all(gradient[expert].abs().sum() > 0 for expert in used)
    assert not gradients[2][absent].any()


@given(cases(), st.randoms(use_true_random=False))
def test_rows_of_an_element_do_not_depend_on_other_rows(case, random):
    layer, rows, groups = case.layer(), case.rows(), case.groups()
    together = layer(rows, groups)
    start = 0
    for z, count in zip(groups.elements.tolist(), groups.counts, strict=True):
        order = random.sample(range(start, start + count), count)
        alone = layer(rows[order], group_rows([z], [count]))
        torch.testing.assert_close(alone, together[order], rtol=1e-13, atol=1e-13)
        start += count


def test_the_mix_of_experts_does_not_depend_on_what_the_row_holds():
    case = Case(4, 6, 2, 3, 4, {8: 2}, 7)
    layer, groups = case.layer(), case.groups()
    before = layer.router(groups.elements)
    layer(100 * case.rows(), groups)
    after = layer.router(groups.elements)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    other = [expert for expert in range(6) if expert not in layer.router.selection[8].tolist()]
    expected = layer(case.rows(), groups)
    with torch.no_grad():
        for weight in layer.experts.parameters():
            weight[other] = float("nan")
        layer.router.logits[8, other] = float("nan")
    assert torch.equal(layer(case.rows(), groups), expected)


@pytest.mark.parametrize("width", [8, 6], ids=["fits", "falls back"])
def test_backends_agree_in_float32_up_to_second_derivatives(width):
    case = Case(width, 6, 2, 8, 8, {1: 7, 6: 1, 8: 20}, 8)
    fast, slow = case.layer(grouped_product).float(), case.layer(loop_product)
    inputs = (case.rows(), *slow.parameters())

    def along(layer):
        names = list(dict(layer.named_parameters()))
        return lambda rows, *parameters: torch.func.functional_call(
            layer, dict(zip(names, parameters, strict=True)), (rows, case.groups())
        )

    found = derivatives(along(fast), [x.float() for x in inputs], orders=2)
    expected = derivatives(along(slow), inputs, orders=2)
    for order, (a, b) in enumerate(zip(found, expected, strict=True)):
        for x, y in zip(a, b, strict=True):
            assert x.dtype == torch.float32
            scale = max(1.0, float(y.abs().max()))
            bound = 200 * (1 + order) * torch.finfo(torch.float32).eps * scale
            torch.testing.assert_close(x.double(), y, rtol=0, atol=bound)


def test_a_plan_for_other_rows_is_refused():
    layer = MoELayer(4, 3, 2, 3, 4)
    with pytest.raises(ValueError, match="3 rows but groups for 2"):
        layer(torch.zeros(3, 4), group_rows([1], [2]))


def test_shared_expert_is_silu_of_the_gate_times_up():
    generator = torch.Generator().manual_seed(0)
    expert = SwiGLU(3, 4).double()
    rows = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    gate, up = rows @ expert.gate_up[:, :4], rows @ expert.gate_up[:, 4:]
    torch.testing.assert_close(expert(rows), (gate / (1 + torch.exp(-gate)) * up) @ expert.down, rtol=1e-12, atol=1e-12)


def test_outputs_start_at_the_size_of_inputs():
    torch.manual_seed(0)
    layer = MoELayer(64, 8, 2, 64, 64)
    out = layer(torch.randn(200, 64), group_rows([1, 8], [100, 100]))
    assert 0.2 < float(out.detach().std()) < 2.0
