import math

import pytest
import torch
from torch import nn

from janus_train.moving_mean import MovingMean


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
