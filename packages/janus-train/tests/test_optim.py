import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from janus_train.config import OptimConfig, ParameterGroup
from janus_train.failure import UserError
from janus_train.optim import learning_rate, make_optimizer, set_learning_rate


@given(st.integers(0, 50), st.integers(1, 300), st.floats(0, 1))
def test_the_learning_rate_rises_to_its_height_and_falls_to_its_end(warmup: int, steps: int, fraction: float):
    config = OptimConfig(lr=0.1, warmup_steps=warmup, final_lr_fraction=fraction)
    rates = [learning_rate(step, warmup + steps, config) for step in range(warmup + steps)]
    assert all(0 < rate <= 0.1 * (1 + 1e-12) or fraction == 0 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[warmup] == pytest.approx(0.1)
    if steps > 1:
        assert rates[-1] == pytest.approx(0.1 * fraction, abs=1e-12)


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Linear(3, 3)
        self.norm = nn.RMSNorm(3)
        self.router = nn.Linear(3, 3, bias=False)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_only_matrices_that_are_no_router_tables_decay(decay: float):
    model = Parts()
    optimizer = make_optimizer(model, OptimConfig(lr=0.1, weight_decay=decay))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * decay if name == "matrix.weight" else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_what_is_frozen_has_no_optimiser_state_and_groups_learn_at_their_own_pace():
    model = Parts()
    model.norm.requires_grad_(False)
    groups = [
        ParameterGroup(match="matrix.bias", lr_factor=0.5),
        ParameterGroup(match="matrix", lr_factor=0.1, weight_decay=0.0),
    ]
    optimizer = make_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.3, groups=groups))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    set_learning_rate(optimizer, 0.2)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    # The first step of Adam is the learning rate itself.
    steps = {"matrix.weight": 0.02, "matrix.bias": 0.1, "norm.weight": 0.0, "router.weight": 0.2}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - steps[name], atol=1e-6, rtol=0)
    assert model.norm.weight not in optimizer.state


@pytest.mark.parametrize(("is_table", "fades"), [(lambda name: True, False), (lambda name: False, True)])
def test_rows_of_tables_that_a_batch_does_not_have_do_not_fade(is_table, fades: bool):
    model = nn.ParameterDict({"table": torch.ones(3, 2)})
    optimizer = make_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.3), is_table)
    model["table"].grad = torch.zeros(3, 2)
    optimizer.step()
    assert bool((model["table"] < 1).all()) is fades


def test_a_group_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match=r"optim\.groups: no parameter has 'matrx' in its name; .*matrix"):
        make_optimizer(Parts(), OptimConfig(groups=[ParameterGroup(match="matrx", lr_factor=0.5)]))
