"""MatRIS-MoE by both routes and under both kinds of sharding: the gradients of one process."""

import copy

import pytest
import torch

from janus_comm import by_double_backward, by_tangent, carry_tangents, make_mesh
from janus_comm.sharding import GatherNodes, StockShards, make_device_mesh
from janus_comm.testing import run_rank_processes, run_rank_threads
from janus_graph import strained
from matris_model import MatRISMoE
from test_parts import model_and_graph

MODEL, GRAPH = model_and_graph()


def energies_of(model):
    def energies(positions, strain):
        return model(strained(GRAPH.replace(positions=positions), strain), ("energy",)).energy

    return energies


def loss(outputs, gradients):
    return outputs[0].square().sum() * 1e-3 + (gradients[0] - 0.1).square().sum() + gradients[1].square().sum() * 1e-2


def step(model, route, phase=None):
    inputs = [GRAPH.positions, torch.zeros_like(GRAPH.cells)]
    route(energies_of(model), inputs, loss, *([] if phase is None else [phase]))
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


@pytest.fixture(scope="module")
def expected():
    return step(copy.deepcopy(MODEL), by_double_backward)


def worst_difference(found, expected, rank, ranks):
    """Largest difference from twice (both ranks have the structure) the rows that a rank keeps."""
    worst = 0.0
    for name, whole in expected.items():
        parts = whole.chunk(ranks) if whole.dim() else [whole.reshape(1)]
        own = found[name].to_local() if hasattr(found[name], "to_local") else found[name]
        if rank < len(parts) and own.numel():
            difference = (own - ranks * parts[rank]).abs().max() / whole.abs().max().clamp(min=1e-6)
            worst = max(worst, float(difference))
    return worst


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_tangent_route_gives_the_gradients_of_double_backward(expected, checkpoint):
    model = copy.deepcopy(MODEL)
    for block in model.blocks:
        carry_tangents(block, checkpoint)
    assert worst_difference(step(model, by_tangent), expected, 0, 1) < 1e-10


@pytest.mark.parametrize("regather", [False, True])
def test_gather_nodes_give_the_gradients_of_one_process(expected, regather):
    def on_rank(world):
        model = copy.deepcopy(MODEL)
        nodes = GatherNodes(model, model.blocks, make_mesh(world, 1, 2), regather=regather)
        return worst_difference(step(model, by_double_backward, nodes.phase), expected, world.rank, 2)

    assert max(run_rank_threads(2, on_rank)) < 1e-10


def test_fsdp2_by_tangents_gives_the_gradients_of_one_process(expected):
    def on_rank(world):
        model = copy.deepcopy(MODEL)
        devices = make_device_mesh(make_mesh(world, 1, 2), torch.device("cpu"))
        stock = StockShards(model, model.blocks, devices, checkpoint=True)
        return worst_difference(step(model, by_tangent, stock.phase), expected, world.rank, 2)

    assert isinstance(MODEL, MatRISMoE)
    assert max(run_rank_processes(2, on_rank)) < 1e-10
