"""A unit takes the fastest way that fits its largest step."""

import pytest
import torch

from janus_comm import SingleRank, make_mesh
from janus_train import load_config
from janus_train.data.batch import FrameSource
from janus_train.memory_plan import plan_memory
from janus_train.recipes.matris_sharding import matris_sharding
from janus_train.trial import largest_step
from test_sharded_step import BATCHES, MODEL, STATISTICS

SHARDING = matris_sharding(MODEL, STATISTICS, 0)
SOURCE = FrameSource(BATCHES["many small ones"], MODEL.config.cutoff, MODEL.config.near_cutoff)
WAYS = [("backward", "keep", False), ("backward", "regather", False), ("backward", "keep", True),
        ("backward", "regather", True), ("tangent", "keep", False), ("tangent", "keep", True)]  # fmt: skip


def planned(*settings: str):
    return plan_memory(
        load_config(None, list(settings)), SHARDING, SOURCE, make_mesh(SingleRank(), 1, 1), torch.device("cpu")
    )


def asked_for(route: str, weights: str, checkpoint: bool):
    return planned(f"mesh.route={route}", f"mesh.weights={weights}", f"model.checkpoint={checkpoint}")


def test_the_fastest_way_that_fits_is_taken_and_the_smallest_where_none_does():
    asked = {way: asked_for(*way) for way in WAYS}
    for way, plan in asked.items():
        assert (plan.strategy.route, plan.strategy.weights, plan.strategy.checkpoint) == way
    needed = [asked[way].needed for way in WAYS]
    for budget in sorted({*needed, max(needed) + 1, min(needed) - 1}):
        plan = planned(f"run.memory_gb={budget / 1e9}")
        fitting = [size for size in needed if size <= plan.available]
        assert plan.needed == (fitting[0] if fitting else min(needed))
        assert plan.fits == bool(fitting)
        assert plan.text().startswith("memory" if fitting else "warning")


def test_weights_that_are_given_back_and_blocks_that_are_computed_again_need_less():
    needed = {way: asked_for(*way).kinds for way in WAYS}
    assert needed[WAYS[1]]["gathered weights"] <= needed[WAYS[0]]["gathered weights"]
    for again, plain in ((2, 0), (3, 1), (5, 4)):
        assert needed[WAYS[again]]["activations"] < needed[WAYS[plain]]["activations"]


@pytest.mark.parametrize("pass_edges", [None, 40])
def test_the_largest_step_has_as_many_edges_as_any_of_the_first_epoch(pass_edges):
    settings = ["data.batch_edges=100", *([] if pass_edges is None else [f"data.pass_edges={pass_edges}"])]
    places = largest_step(SOURCE, load_config(None, settings))
    assert SOURCE.edges[places].sum() >= SOURCE.edges.max()
    assert SOURCE.edges[places].sum() <= max(SOURCE.edges.max(), pass_edges or 100)
