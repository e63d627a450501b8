"""Gathers and reductions keep step with the chain's collectives, whatever a rank has to compute."""

import copy

import pytest
import torch
from torch import nn

from janus_comm import Chain, RankFailed, all_reduce, make_mesh
from janus_comm.sharding import GatherNodes
from janus_comm.testing import run_rank_processes, run_rank_threads

WIDTH, ROWS = 3, (2, 0, 3)


class Block(nn.Module):
    """Rows and the mean of all ranks' rows; a rank without rows does not touch the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, rows, summed):
        total = summed(rows.sum(0, keepdim=True))
        return rows + torch.tanh(self.linear(rows + total)) if len(rows) else rows


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, rows, run, summed):
        for _ in range(2):  # each block is called twice
            for block in self.blocks:
                rows = run(block, rows, summed)
        return (rows.square().sum() + rows.sum()).reshape(1)


def make_model():
    torch.manual_seed(0)
    return Model().double()


MODEL = make_model()


def rank_rows(rank):
    return torch.randn(ROWS[rank], WIDTH, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def one_process():
    model, rows = copy.deepcopy(MODEL), torch.cat([rank_rows(rank) for rank in range(len(ROWS))]).requires_grad_()
    energy = model(rows, lambda block, *arguments: block(*arguments), lambda total: total)
    (force,) = torch.autograd.grad(energy, rows, create_graph=True)
    (force.square().sum() + energy.sum()).backward()
    return force.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def on_rank(world, regather, in_step):
    model, rows = copy.deepcopy(MODEL), rank_rows(world.rank).requires_grad_()
    nodes = GatherNodes(model, model.blocks, make_mesh(world, 1, world.size), regather=regather)
    chain = Chain(rows)

    def run(block, *arguments):
        return nodes.in_step(chain, block, *arguments) if in_step else block(*arguments)

    with nodes.phase("forward"):
        energy = chain.join(model(rows, run, lambda total: all_reduce(total, world, chain)))
    with nodes.phase("inner"):
        (force,) = torch.autograd.grad(energy, rows, create_graph=True)
    with nodes.phase("outer"):
        chain.join(force.square().sum() + energy.sum(), force).backward()
    return force.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("regather", [False, True])
@pytest.mark.parametrize("run", [run_rank_threads, run_rank_processes])
def test_a_rank_that_never_asks_for_weights_takes_part_in_their_gathers(regather, run):
    force, gradients = one_process()
    results = run(len(ROWS), lambda world: on_rank(world, regather, True))
    torch.testing.assert_close(torch.cat([own for own, _ in results]), force, rtol=1e-12, atol=1e-12)
    for name, gradient in gradients.items():
        found = torch.cat([rows[name].reshape(-1, *gradient.shape[1:]) for _, rows in results])
        torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-12, msg=name)


def test_without_milestones_ranks_come_to_other_collectives_than_each_other():
    with pytest.raises(RankFailed):
        run_rank_threads(len(ROWS), lambda world: on_rank(world, True, False), timeout=2.0)


def test_a_module_that_is_no_block_is_refused():
    def refused(world):
        model = copy.deepcopy(MODEL)
        nodes = GatherNodes(model, model.blocks, make_mesh(world, 1, world.size))
        with pytest.raises(ValueError, match="Linear is not one of the blocks"):
            nodes.in_step(Chain(), nn.Linear(1, 1), torch.zeros(1))

    run_rank_threads(1, refused)


def test_parameters_that_are_ignored_stay_whole():
    def untouched(world):
        model = copy.deepcopy(MODEL)
        kept = model.blocks[1].linear.weight
        GatherNodes(model, model.blocks, make_mesh(world, 1, world.size), ignored=[kept])
        assert model.blocks[1].linear.weight is kept
        assert model.blocks[0].linear.weight.shape[0] < WIDTH

    run_rank_threads(3, untouched)
