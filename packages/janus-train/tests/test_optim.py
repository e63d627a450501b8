import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from janus_train.config import OptimConfig
from janus_train.optim import MovingMean, learning_rate, make_optimizer


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


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_the_moving_mean_is_the_recurrence_it_says_and_changes_places_with_the_weights(decay: float):
    model = nn.Linear(1, 1).double()
    model.bias.requires_grad_(False)
    mean = MovingMean(model, decay)
    assert set(mean.weights) == ({"weight"} if decay else set())
    expected = None
    for count in range(60):
        with torch.no_grad():
            model.weight.fill_(math.sin(count))
        mean.update()
        now = min(decay, (1 + count) / (10 + count))
        # The first update copies.
        expected = math.sin(0) if expected is None else now * expected + (1 - now) * math.sin(count)
        with mean.in_place():
            assert model.weight.item() == pytest.approx(expected, abs=1e-12)
        assert model.weight.item() == math.sin(count)


def test_an_error_leaves_the_weights_in_their_place():
    model = nn.Linear(1, 1)
    mean = MovingMean(model, 0.9)
    before = model.weight.item()
    mean.weights["weight"] += 1
    with pytest.raises(ZeroDivisionError), mean.in_place():
        print(model.weight.item() / 0)
    assert model.weight.item() == before
    assert mean.weights["weight"].item() == before + 1


def test_a_rank_without_rows_has_an_empty_mean():
    model = nn.ParameterDict({"rows": torch.zeros(0, 3)})
    mean = MovingMean(model, 0.9)
    mean.update()
    with mean.in_place():
        assert model["rows"].shape == (0, 3)
    assert mean.weights["rows"].shape == (0, 3)
