"""Sharded experts over real exchanges: one process's numbers by any plan, and bytes as planned."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_comm import Accounting, Chain, Counted, make_exchange
from janus_comm.testing import run_rank_processes, run_rank_threads
from janus_moe import ELEMENTS, MoELayer, group_rows, loop_product
from janus_moe.cost import CostModel
from janus_moe.expert_parallel import ShardedExperts, UnitStep, shard_experts
from janus_moe.planner import plan_experts

EXPERTS, TOP_K, WIDTH, HIDDEN = 6, 3, 4, 5
COSTS = {
    "rows travel": CostModel(pair=10, row=1, unit=500),
    "weights travel": CostModel(pair=10, row=500, unit=1),
    "both travel": CostModel(pair=10, row=10, unit=4),
}


class Stack(torch.nn.Module):
    """Two layers of experts, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = WIDTH, EXPERTS, TOP_K, HIDDEN, 3, loop_product
        self.layers = torch.nn.ModuleList([MoELayer(*sizes), MoELayer(*sizes)]).double()
        self.layers[1].router.selection.add_(1).remainder_(EXPERTS)

    def forward(self, rows, groups):
        for layer in self.layers:
            rows = rows + layer(rows, groups)
        return torch.sin(rows).sum()


MODEL = Stack()


def table_of(counts):
    """Rows by atomic number for each rank and both layers, from (hydrogen, oxygen, iron) of each rank."""
    rows = np.zeros((2, len(counts), ELEMENTS), dtype=np.int64)
    rows[:, :, [1, 8, 26]] = counts
    return rows


def rank_rows(rank, counts):
    return torch.randn(sum(counts), WIDTH, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def one_process(counts):
    model, loss, forces = copy.deepcopy(MODEL), torch.zeros((), dtype=torch.float64), []
    for rank, own in enumerate(counts):
        rows = rank_rows(rank, own).requires_grad_()
        energy = model(rows, group_rows([1, 8, 26], own))
        (force,) = torch.autograd.grad(energy, rows, create_graph=True)
        forces.append(force.detach())
        loss = loss + energy**2 + torch.cos(force).sum()
    loss.backward()
    return forces, {name: parameter.grad for name, parameter in model.named_parameters()}


def whole_gradients(model, world, sharded=False):
    """Gradients as one process has them: slices of experts, and shards of all else where there are some, side by side;
    sums over ranks of what every rank has."""
    slices = {
        id(p): d for m in model.modules() if isinstance(m, ShardedExperts) for p, d in ((m.gate_up, 2), (m.down, 1))
    }
    gradients = {}
    for name, parameter in model.named_parameters():
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        dim = slices.get(id(parameter), 0 if sharded else None)
        if dim is None:
            gradients[name] = world.sum(own)
        else:
            gradients[name] = torch.cat(list(map(torch.from_numpy, world.gather_object(own.numpy()))), dim)
    return gradients


def on_rank(world, counts, plan):
    """Forces of a rank's rows, all gradients as they are after synchronisation, and bytes sent by phase."""
    model, accounting = copy.deepcopy(MODEL), Accounting()
    layers = shard_experts(model, world.rank, world.size)
    rows = rank_rows(world.rank, counts[world.rank]).requires_grad_()
    chain = Chain(rows, *model.parameters())
    step = UnitStep(plan, world.rank, make_exchange(Counted(world, accounting), chain))
    energy = chain.join(model(rows, step.group_rows([1, 8, 26], counts[world.rank])))
    (force,) = torch.autograd.grad(energy, rows, create_graph=True)
    chain.join(energy**2 + torch.cos(force).sum(), force).backward()
    step.return_gradients(layers)
    return force.detach(), whole_gradients(model, world), accounting.total("exchange_rows").bytes_sent


def check(results, counts, plan):
    forces, gradients = one_process(counts)
    for rank, (force, found, sent) in enumerate(results):
        torch.testing.assert_close(force, forces[rank], rtol=1e-10, atol=1e-10)
        for name, expected in gradients.items():
            scale = max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-10 * scale, msg=name)
        predicted = plan.bytes_sent(WIDTH, bytes_per_number=8)
        assert sent == sum(int(table[:, rank].sum()) for table in predicted.values())


def planned(counts, kind, seed):
    selection = np.stack([layer.router.selection.numpy() for layer in MODEL.layers])
    plan = plan_experts(table_of(counts), selection, EXPERTS, HIDDEN, COSTS.get(kind, COSTS["both travel"]))
    if kind == "anywhere":
        random = np.random.default_rng(seed)
        plan = dataclasses.replace(plan, computes=random.integers(0, plan.ranks, plan.computes.shape))
    return plan


@settings(max_examples=15, derandomize=True, deadline=None)
@given(
    st.integers(1, 8).flatmap(
        lambda ranks: st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=ranks, max_size=ranks)
    ),
    st.sampled_from([*COSTS, "anywhere"]),
    st.integers(0, 100),
)
def test_forces_and_gradients_are_those_of_one_process_for_any_plan_and_spread(counts, kind, seed):
    plan = planned(counts, kind, seed)
    check(run_rank_threads(len(counts), lambda world: on_rank(world, counts, plan)), counts, plan)


@pytest.mark.parametrize("kind", [*COSTS, "anywhere"])
def test_processes_give_the_numbers_of_one(kind):
    counts = [[3, 0, 2], [0, 0, 0], [0, 7, 1]]
    plan = planned(counts, kind, 0)
    check(run_rank_processes(len(counts), lambda world: on_rank(world, counts, plan)), counts, plan)
