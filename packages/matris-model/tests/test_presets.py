"""Sizes of the presets, counted without memory."""

import pytest
import torch

from matris_model import PRESETS, MatRISMoE, count_parameters, preset_config
from model_cases import TINY

PUBLISHED = {"S": (1.09e9, 0.19e9), "M": (2.47e9, 0.56e9), "L": (11.5e9, 2.89e9)}  # arXiv 2604.15821
SMALL = {"nano": 0.83e6, "micro": 6e6, "mini": 67e6, "base": 330e6}


@pytest.mark.parametrize("name", PUBLISHED)
def test_large_presets_have_the_published_sizes(name):
    total, active = PUBLISHED[name]
    counts = count_parameters(preset_config(name))
    assert counts["parameters_total"] == pytest.approx(total, rel=0.03)
    assert counts["parameters_active"] == pytest.approx(active, rel=0.03)


@pytest.mark.parametrize("name", SMALL)
def test_small_presets_are_as_large_as_they_say(name):
    assert count_parameters(preset_config(name))["parameters_total"] == pytest.approx(SMALL[name], rel=0.15)


def test_every_preset_is_counted_here():
    assert set(PRESETS) == {*PUBLISHED, *SMALL}


def test_the_largest_preset_costs_no_memory_on_the_meta_device():
    with torch.device("meta"):
        model = MatRISMoE.from_preset("L")
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert sum(p.numel() for p in model.parameters()) == count_parameters(model.config)["parameters_total"]


def test_counts_equal_those_of_a_model_that_exists():
    model = MatRISMoE(TINY)
    counts = count_parameters(TINY)
    assert counts["parameters_total"] == sum(p.numel() for p in model.parameters())
    one_expert = 3 * TINY.width * TINY.expert_hidden
    idle = 2 * TINY.blocks * (TINY.experts - TINY.top_k) * one_expert
    assert counts["parameters_active"] == counts["parameters_total"] - idle


def test_the_published_number_of_experts_and_blocks():
    assert [(PRESETS[name].blocks, PRESETS[name].top_k) for name in "SML"] == [(6, 4), (6, 8), (6, 16)]
