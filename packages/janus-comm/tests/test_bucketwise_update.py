"""Clipping and updates on shards: one process's parameters, and gathers that begin while others are updated."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from conservative import loss_of, potential, structure
from janus_comm import Accounting, Counted, MemoryAccounting, SingleRank, by_double_backward, make_mesh
from janus_comm.sharding import BucketwiseUpdate, GatherNodes, clip_gradients, gradient_norm
from janus_comm.testing import run_rank_threads
from sharded_training import rows_of, worst_difference


@pytest.mark.parametrize("regather", [False, True])
@pytest.mark.parametrize("largest", [None, 0.1])
def test_bucketwise_updates_are_those_of_one_optimiser_on_one_process(regather, largest):
    structures, whole = [structure(4, 0), structure(5, 1)], potential(4, (None,) * 4)
    expected = copy.deepcopy(whole)
    optimizer, norms = torch.optim.AdamW(expected.parameters(), lr=3e-3), []
    for _ in range(4):
        optimizer.zero_grad()
        for example in structures:
            by_double_backward(lambda x, s=example: expected(x, s), [example.positions], loss_of(example))
        norms.append(nn.utils.get_total_norm([parameter.grad for parameter in expected.parameters()]))
        for parameter in expected.parameters():
            parameter.grad *= min(1.0, (largest or float("inf")) / float(norms[-1]))
        optimizer.step()
    wanted = {name: parameter.detach() for name, parameter in expected.named_parameters()}

    def on_rank(world):
        model, example = copy.deepcopy(whole), structures[world.rank]
        memory = MemoryAccounting()
        nodes = GatherNodes(model, model.blocks, make_mesh(world, 1, 2), regather=regather, memory=memory)
        update = BucketwiseUpdate(nodes, lambda shards: torch.optim.AdamW(shards, lr=3e-3), largest)
        for norm in norms:
            update.zero_grad()
            by_double_backward(lambda x: model(x, example), [example.positions], loss_of(example), nodes.phase)
            torch.testing.assert_close(update.step(), norm, rtol=1e-10, atol=0)
        assert memory.live > 0  # what a next step would need first is on its way
        found = {name: parameter.detach() for name, parameter in model.named_parameters()}
        return worst_difference(found, wanted, world.rank, 2)

    assert max(run_rank_threads(2, on_rank)) < 1e-10


def test_looking_ahead_costs_no_gather_more():
    def on_rank(world, ahead):
        accounting, example = Accounting(), structure(4, world.rank)
        model = copy.deepcopy(whole)
        nodes = GatherNodes(model, model.blocks, make_mesh(Counted(world, accounting), 1, 2), regather=True)
        for _ in range(3):
            by_double_backward(lambda x: model(x, example), [example.positions], loss_of(example), nodes.phase)
            if ahead:
                nodes.look_ahead()
        return accounting.total("gather_rows").calls

    whole = potential(4, (None,) * 3)
    with_it = run_rank_threads(2, lambda world: on_rank(world, True))
    without = run_rank_threads(2, lambda world: on_rank(world, False))
    assert [calls - 2 for calls in with_it] == without


@given(sizes=st.lists(st.integers(0, 4), max_size=3), ranks=st.integers(1, 3), seed=st.integers(0, 9))
def test_the_norm_is_that_of_all_ranks_rows(sizes, ranks, seed):
    generator = torch.Generator().manual_seed(seed)
    gradients = [torch.randn(size, 2, generator=generator, dtype=torch.float64) for size in sizes]
    wanted = torch.cat([torch.zeros(1, dtype=torch.float64), *(gradient.flatten() for gradient in gradients)]).norm()

    def on_rank(world):
        parameters = [nn.Parameter(torch.zeros(1))]  # without a gradient
        for gradient in gradients:
            rows = rows_of(gradient, world.rank, ranks)
            parameters.append(nn.Parameter(torch.zeros_like(rows)))
            parameters[-1].grad = rows.clone()
        norm = gradient_norm(parameters, world)
        clip_gradients(parameters, norm, 0.5)
        return norm, gradient_norm(parameters, world)

    for norm, clipped in run_rank_threads(ranks, on_rank):
        torch.testing.assert_close(norm, wanted, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(clipped, wanted.clamp(max=0.5), rtol=1e-12, atol=1e-15)


def test_clipping_leaves_small_gradients_bit_for_bit():
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([0.1, 0.2, 0.3])
    clip_gradients([parameter], gradient_norm([parameter], SingleRank()), 1.0)
    assert parameter.grad.tolist() == torch.tensor([0.1, 0.2, 0.3]).tolist()
