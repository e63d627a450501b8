import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from janus_train.config import OptimConfig
from janus_train.optim import make_optimizer, set_learning_rate
from janus_train.orthogonal import orthogonal_factor


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), stack=st.integers(0, 3), seed=st.integers(0, 2**16))
def test_the_factor_of_a_matrix_has_its_singular_vectors_and_singular_values_near_one(rows, columns, stack, seed):
    generator = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(
        torch.randn(stack, rows, columns, generator=generator, dtype=torch.float64), full_matrices=False
    )
    # Singular values as different as a gradient's may be, none of which five iterations leave behind.
    sizes = torch.logspace(0, -1.5, min(rows, columns), dtype=torch.float64)
    factor = orthogonal_factor(3.7 * u @ sizes.diag() @ v)
    turned = u.mT @ factor @ v.mT
    found = turned.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(turned, found.diag_embed(), rtol=0, atol=1e-12)
    assert ((found > 0.6) & (found < 1.3)).all()


def test_no_gradient_has_no_factor():
    assert torch.equal(orthogonal_factor(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def stack_and_norm() -> nn.ParameterDict:
    generator = torch.Generator().manual_seed(0)
    return nn.ParameterDict({
        "stack": torch.randn(3, 6, 4, generator=generator),
        "norm": torch.randn(4, generator=generator),
    })  # fmt: skip


def optimizer_of(model: nn.Module, config: OptimConfig):
    return make_optimizer(model, config, lambda name: False, lambda name: name == "stack")


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_matrices_move_along_the_factor_of_their_momentum_and_the_rest_as_adamw_moves_it(decay: float):
    model, plain = stack_and_norm(), stack_and_norm()
    optimizer = optimizer_of(model, OptimConfig(lr=0.1, weight_decay=decay))
    reference = torch.optim.AdamW([plain["norm"]], lr=0.1, weight_decay=0.0)
    expected, momentum = model["stack"].detach().clone(), torch.zeros(3, 6, 4)
    generator = torch.Generator().manual_seed(1)
    for step in range(5):
        set_learning_rate(optimizer, rate := 0.1 / (step + 1))
        reference.param_groups[0]["lr"] = rate
        model["stack"].grad = torch.randn(3, 6, 4, generator=generator)
        model["norm"].grad = plain["norm"].grad = torch.randn(4, generator=generator)
        optimizer.step()
        reference.step()
        momentum = 0.95 * momentum + 0.05 * model["stack"].grad
        ahead = 0.95 * momentum + 0.05 * model["stack"].grad
        expected = (1 - 10 * rate * decay) * expected - 10 * rate * orthogonal_factor(ahead)
        torch.testing.assert_close(model["stack"].detach(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model["norm"].detach(), plain["norm"].detach())


def test_without_orthogonal_all_parameters_move_as_adamw_moves_them():
    model, plain = stack_and_norm(), stack_and_norm()
    optimizer = optimizer_of(model, OptimConfig(lr=0.1, weight_decay=0.0, orthogonal=False))
    reference = torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.0)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        one.grad = other.grad = torch.cos(one.detach())
    optimizer.step()
    reference.step()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_matrix_of_a_stack_that_a_step_has_no_gradient_of_stays_as_it_is():
    model = stack_and_norm()
    optimizer = optimizer_of(model, OptimConfig(lr=0.1, weight_decay=0.3))
    model["stack"].grad = torch.ones(3, 6, 4)
    optimizer.step()
    before, momentum = model["stack"].detach().clone(), optimizer.state[model["stack"]]["momentum"].clone()
    model["stack"].grad[1] = 0
    optimizer.step()
    stays = [torch.equal(one, other) for one, other in zip(model["stack"], before, strict=True)]
    assert stays == [False, True, False]
    assert torch.equal(optimizer.state[model["stack"]]["momentum"][1], momentum[1])


def test_groups_of_matrices_learn_at_their_own_pace():
    moved = []
    for factor in (1.0, 0.25):
        model = stack_and_norm()
        optimizer = optimizer_of(model, OptimConfig(weight_decay=0, groups=[{"match": "stack", "lr_factor": factor}]))
        set_learning_rate(optimizer, 0.1)
        before = model["stack"].detach().clone()
        model["stack"].grad = torch.sin(before)
        optimizer.step()
        moved.append(model["stack"].detach() - before)
    torch.testing.assert_close(moved[1], 0.25 * moved[0])
