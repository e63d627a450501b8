"""The two routes to the gradient of a loss of forces: the same numbers, each the other's oracle."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from conservative import Structure, loss_of, potential, relative_difference, structure
from janus_comm import MissingDerivative, by_double_backward, by_tangent, carry_tangents, evaluate
from janus_comm.tangents import in_tangent_level, tangent_level
from janus_comm.testing.measure import ProductFlops, peak_bytes

TOLERANCE = 1e-11


def gradients_by(route, model, example: Structure, loss=None):
    model.zero_grad()
    seen = route(lambda positions: model(positions, example), [example.positions], loss or loss_of(example))
    return seen, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_same_gradients(first, second):
    largest = max((float(gradient.abs().max()) for gradient in first if gradient.numel()), default=0.0)
    for one, other in zip(first, second, strict=True):
        assert one.shape == other.shape
        if one.numel():
            assert float((one - other).abs().max()) <= TOLERANCE * (1 + largest)


@given(atoms=st.integers(0, 6), seed=st.integers(0, 5), blocks=st.integers(0, 3), checkpoint=st.booleans())
def test_both_routes_give_the_same_gradients(atoms, seed, blocks, checkpoint):
    example, model = structure(atoms, seed), potential(4, (None,) * blocks, seed)
    plain = gradients_by(by_double_backward, model, example)
    carried = copy.deepcopy(model)
    for block in carried.blocks:
        carry_tangents(block, checkpoint)
    for route in (by_double_backward, by_tangent):
        seen, gradients = gradients_by(route, carried, example)
        assert_same_gradients(plain[1], gradients)
        assert relative_difference(seen.loss, plain[0].loss) < TOLERANCE
        assert relative_difference(seen.gradients[0], plain[0].gradients[0]) < TOLERANCE


@pytest.mark.parametrize("route", [by_double_backward, by_tangent])
def test_gradients_are_finite_differences_of_the_loss(route):
    example, model = structure(5, 1), potential(4, (None, None))
    _, gradients = gradients_by(route, model, example)
    generator, step = torch.Generator().manual_seed(3), 1e-5
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        along = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * along
            losses.append(gradients_by(route, model, example)[0].loss)
            with torch.no_grad():
                parameter -= sign * step * along
        slope = (losses[0] - losses[1]) / (2 * step)
        # Central differences: the error is that of the third derivative, step² times a number of the loss's size.
        assert abs(float(slope - (gradient * along).sum())) <= 1e-6 * (1 + abs(float(slope)))


def test_forces_and_a_strain_are_two_inputs():
    example, model = structure(5, 2), potential(4, (None,))

    def strained(positions, strain):
        return model(positions + positions @ strain, example)

    def loss(outputs, gradients):
        return (gradients[0] ** 2).sum() + (gradients[1] ** 3).sum() + outputs[0].sum()

    found = []
    for route in (by_double_backward, by_tangent):
        model.zero_grad()
        seen = route(strained, [example.positions, torch.zeros(3, 3, dtype=torch.float64)], loss)
        found.append(([p.grad.clone() for p in model.parameters()], seen.gradients[1]))
    assert_same_gradients(found[0][0], found[1][0])
    assert relative_difference(found[1][1], found[0][1]) < TOLERANCE
    assert float(found[0][1].abs().max()) > 0


def test_gradients_accumulate_over_two_losses():
    first, second, model = structure(4, 1), structure(6, 2), potential()
    expected = [
        sum(pair)
        for pair in zip(
            gradients_by(by_double_backward, model, first)[1],
            gradients_by(by_double_backward, model, second)[1],
            strict=True,
        )
    ]
    for route in (by_double_backward, by_tangent):
        model.zero_grad()
        for example in (first, second):
            route(lambda positions, given=example: model(positions, given), [example.positions], loss_of(example))
        assert_same_gradients(expected, [parameter.grad for parameter in model.parameters()])


def test_parameters_of_the_loss_itself_get_their_gradient_too():
    example, model = structure(4, 3), potential()
    found = []
    for route in (by_double_backward, by_tangent):
        weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        base = loss_of(example)
        gradients_by(route, model, example, lambda outputs, forces, w=weight, b=base: w**2 * b(outputs, forces))
        found.append(weight.grad)
    assert relative_difference(found[1], found[0]) < TOLERANCE


@pytest.mark.parametrize("route", [by_double_backward, by_tangent])
def test_energies_that_do_not_depend_on_positions_have_forces_of_zero(route):
    weight = torch.tensor(2.0, requires_grad=True)
    seen = route(lambda positions: weight.reshape(1) ** 2, [torch.ones(2, 3)], lambda o, g: o[0].sum() + g[0].sum())
    assert torch.equal(seen.gradients[0], torch.zeros(2, 3))
    assert float(weight.grad) == 4.0


@pytest.mark.parametrize("route", [by_double_backward, by_tangent])
def test_a_potential_without_trained_parameters_has_forces(route):
    seen = route(lambda positions: (positions**2).sum(1), [torch.ones(2, 3)], lambda o, g: (g[0] ** 2).sum())
    assert torch.equal(seen.gradients[0], 2 * torch.ones(2, 3))


def test_evaluate_gives_what_the_routes_see_and_leaves_parameters_alone():
    example, model = structure(5, 4), potential()
    seen, _ = gradients_by(by_double_backward, model, example)
    model.zero_grad(set_to_none=True)
    outputs, gradients = evaluate(lambda positions: model(positions, example), [example.positions])
    assert relative_difference(outputs[0], seen.outputs[0]) < TOLERANCE
    assert relative_difference(gradients[0], seen.gradients[0]) < TOLERANCE
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(each.requires_grad for each in (*outputs, *gradients))


@pytest.mark.parametrize(
    ("route", "checkpoint", "most"),
    [
        (by_double_backward, False, 6.0),
        (by_double_backward, True, 8.0),
        (by_tangent, False, 8.0),
        (by_tangent, True, 11.0),
    ],
)
def test_a_step_costs_no_product_more_than_its_derivatives_have(route, checkpoint, most):
    example, model = structure(12, 5), potential(8, (None,) * 6)
    for block in model.blocks:
        carry_tangents(block, checkpoint)
    with ProductFlops() as forward, torch.no_grad():
        model(example.positions, example)
    with ProductFlops() as step:
        gradients_by(route, model, example)
    assert step.flops / forward.flops <= most


def test_memory_of_a_checkpointed_tangent_step_does_not_grow_with_depth():
    # Many edges an atom: what goes into a block, a row an atom, is small beside what is inside.
    example, peaks = structure(30, 9), []
    for blocks in (4, 16):
        model = potential(8, (None,) * blocks)
        for block in model.blocks:
            carry_tangents(block, checkpoint=True)
        gradients_by(by_tangent, model, example)
        peaks.append(peak_bytes(lambda m=model: gradients_by(by_tangent, m, example)))
    assert peaks[1] <= 1.15 * peaks[0]


class Narrow(nn.Module):
    """A potential around one function of rows, to see whether that function survives both routes."""

    def __init__(self, function):
        super().__init__()
        self.function, self.first = function, nn.Linear(3, 6)
        self.second, self.norm = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, positions, _):
        rows = self.function(self, torch.tanh(self.first(positions)))
        return rows.square().sum().reshape(1), rows.sum(1)


OPERATIONS = {
    "layer_norm": lambda m, x: nn.functional.layer_norm(x, (6,), m.norm, m.second[0]),
    "layer_norm without weights": lambda m, x: nn.functional.layer_norm(x, (6,)),
    "rms_norm": lambda m, x: nn.functional.rms_norm(x, (6,), m.norm, 1e-5),
    "group_norm": lambda m, x: nn.functional.group_norm(x, 2, m.norm),
    "linear": lambda m, x: nn.functional.linear(x, m.second, m.norm),
    "matmul on both sides": lambda m, x: m.second.T @ (x @ m.second).T @ x,
    "einsum": lambda m, x: torch.einsum("ai,ij,aj->ai", x, m.second, torch.sin(x)),
    "bmm": lambda m, x: torch.bmm(x[:, None], m.second.expand(len(x), 6, 6))[:, 0],
    "addmm": lambda m, x: torch.addmm(m.norm, x, m.second),
    "softmax": lambda m, x: torch.softmax(x @ m.second, 1) * x,
    "attention": lambda m, x: nn.functional.scaled_dot_product_attention(x[None], (x @ m.second)[None], x[None])[0],
    "causal attention": lambda m, x: nn.functional.scaled_dot_product_attention(x, x @ m.second, x, is_causal=True),
    "attention with a mask": lambda m, x: nn.functional.scaled_dot_product_attention(
        x, x @ m.second, x, attn_mask=torch.eye(len(x), dtype=torch.bool)
    ),
    "log_softmax": lambda m, x: x.log_softmax(1) * m.norm,
    "silu": lambda m, x: nn.functional.silu(x * m.norm),
    "gelu": lambda m, x: nn.functional.gelu(x * m.norm),
    "softplus": lambda m, x: nn.functional.softplus(x * m.norm),
    "norm": lambda m, x: x / (x * m.norm).norm(dim=1, keepdim=True),
    "linalg.norm": lambda m, x: x * torch.linalg.vector_norm(x * m.norm, dim=1, keepdim=True),
    "index_add": lambda m, x: torch.zeros_like(x).index_add(0, torch.zeros(len(x), dtype=torch.long), x * m.norm),
    "scatter_add": lambda m, x: torch.zeros_like(x).scatter_add(0, torch.zeros(x.shape, dtype=torch.long), x * m.norm),
    "gather of rows": lambda m, x: (x * m.norm)[torch.zeros(4, dtype=torch.long)],
    "cumsum": lambda m, x: torch.cumsum(x * m.norm, 1) * x,
    "logsumexp": lambda m, x: torch.logsumexp(x * m.norm, 1, keepdim=True) * x,
    "cross": lambda m, x: torch.linalg.cross(x[:, :3] * m.norm[:3], x[:, 3:]),
    "where and clamp": lambda m, x: torch.where(x > 0, x * m.norm, x.clamp(-0.5, 0.5) ** 2),
    "cat, split, permute": lambda m, x: torch.cat([(x * m.norm).T[:2].T ** 2, x[:, 2:]], 1).flip(1),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_of_potentials_have_both_derivatives(name):
    torch.manual_seed(0)
    model, example = Narrow(OPERATIONS[name]).double(), structure(4, 6)

    def loss(outputs, gradients):
        return outputs[0].sum() ** 2 + (gradients[0] ** 2).sum() + outputs[1].square().sum()

    _, backward = gradients_by(by_double_backward, model, example, loss)
    _, tangent = gradients_by(by_tangent, model, example, loss)
    assert_same_gradients(backward, tangent)


def test_grouped_products_take_the_tangent_route():
    torch.manual_seed(0)
    weights = torch.randn(2, 4, 8, requires_grad=True)
    offsets = torch.tensor([2, 5], dtype=torch.int32)

    def energies(positions, product):
        rows = torch.cat([positions, positions[:, :1] ** 2], 1)
        return product(torch.sin(rows)).square().sum(1)

    def loop(rows):
        return torch.cat([rows[:2] @ weights[0], rows[2:] @ weights[1]])

    def grouped(rows):
        return nn.functional.grouped_mm(rows, weights, offs=offsets)

    def loss(outputs, gradients):
        return outputs[0].sum() + (gradients[0] ** 2).sum()

    positions, found = torch.randn(5, 3), []
    for product, route in ((loop, by_double_backward), (grouped, by_tangent)):
        weights.grad = None
        route(lambda x, p=product: energies(x, p), [positions], loss)
        found.append(weights.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


class Opaque(torch.autograd.Function):
    """A function as people write it who never thought of another derivative."""

    @staticmethod
    def forward(ctx, rows):
        ctx.save_for_backward(rows)
        return rows.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, cotangent):
        return cotangent * ctx.saved_tensors[0].exp()


def narrow_loss(outputs, gradients):
    return (gradients[0] ** 2).sum()


@pytest.mark.parametrize(
    ("function", "route", "told"),
    [
        (lambda m, x: Opaque.apply(x) * m.norm, by_tangent, "Opaque"),
        (lambda m, x: Opaque.apply(x) * m.norm, by_double_backward, "once_differentiable"),
        (lambda m, x: torch.cdist(x * m.norm, x), by_double_backward, "_cdist_backward"),
        (lambda m, x: torch.cdist(x * m.norm, x), by_tangent, "cdist"),
    ],
)
def test_a_missing_derivative_is_named(function, route, told):
    torch.manual_seed(0)
    model = Narrow(function).double()
    with pytest.raises(MissingDerivative, match=told):
        gradients_by(route, model, structure(4, 7), narrow_loss)


def test_a_block_sees_nested_arguments_with_their_tangents():
    seen = {}

    class Nested(nn.Module):
        def forward(self, rows, *, extra):
            seen["type"] = type(extra["pair"][0]).__name__
            return {"rows": rows * extra["pair"][1], "count": 3, "same": extra["pair"][0]}

    @dataclasses.dataclass(frozen=True)
    class Held:
        value: torch.Tensor
        label: str

    block = Nested()
    carry_tangents(block)

    def energies(positions):
        result = block(positions, extra={"pair": (Held(positions**2, "label"), positions.sum())})
        assert result["count"] == 3
        assert result["same"].label == "label"
        return (result["rows"] * result["same"].value).sum(1)

    def plain(positions):
        return (positions * positions.sum() * positions**2).sum(1)

    positions = torch.rand(3, 3, dtype=torch.float64)
    weight = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    found = []
    for function, route in ((plain, by_double_backward), (energies, by_tangent)):
        weight.grad = None
        route(lambda x, f=function: f(weight * x), [positions], narrow_loss)
        found.append(weight.grad)
    assert seen["type"] == "Held"
    assert relative_difference(found[1], found[0]) < TOLERANCE


def test_outside_a_tangent_level_a_block_is_called_as_before():
    block = potential(4, (None,)).blocks[0]
    carry_tangents(block)
    assert not in_tangent_level()
    with tangent_level():
        assert in_tangent_level()
        with tangent_level():
            assert in_tangent_level()
        assert in_tangent_level()
    assert not in_tangent_level()


def test_phases_are_entered_in_order():
    from contextlib import contextmanager

    example, model, told = structure(3, 8), potential(), []

    @contextmanager
    def phase(name):
        told.append(name)
        yield
        told.append("/" + name)

    function = lambda positions: model(positions, example)  # noqa: E731
    by_double_backward(function, [example.positions], loss_of(example), phase)
    assert told == ["forward", "/forward", "inner", "/inner", "outer", "/outer"]
    told.clear()
    by_tangent(function, [example.positions], loss_of(example), phase)
    assert [name for name in told if name[0] != "/"] == ["forward", "inner", "tangent", "outer"]
    told.clear()
    evaluate(function, [example.positions], phase)
    assert told == ["evaluation", "forward", "/forward", "inner", "/inner", "/evaluation"]
