"""Both routes through collectives: ranks that share a graph get the gradients of one process."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_comm import Chain, all_gather, by_double_backward, by_tangent
from janus_comm.testing import run_rank_processes, run_rank_threads

WIDTH = 3


def weights_of_a_potential():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]


def positions_of(count):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def energy_of(positions, weights, everyone):
    """Of atoms that feel all others twice: by their positions, and by what those have made of theirs."""
    rows = torch.tanh(positions @ weights[0]) * torch.sin(everyone(positions) @ weights[1]).sum(0)
    return (rows * torch.cos(everyone(rows)).sum(0)).sum().reshape(1)


def loss(outputs, gradients):
    # Linear in the energies: ranks hold parts of one energy, and the loss is a sum over ranks.
    return 0.7 * outputs[0].sum() + (gradients[0] - 0.2).square().sum()


def one_process(count):
    weights = weights_of_a_potential()
    by_double_backward(lambda x: energy_of(x, weights, lambda rows: rows), [positions_of(count)], loss)
    return [weight.grad for weight in weights]


def many_ranks(world, counts, route):
    weights, start = weights_of_a_potential(), sum(counts[: world.rank])
    own = positions_of(sum(counts))[start : start + counts[world.rank]]

    def potential(positions):
        chain = Chain(positions, *weights)
        return chain.join(energy_of(positions, weights, lambda rows: all_gather(rows, world, counts, chain)))

    route(potential, [own], loss)
    return [world.sum(weight.grad) for weight in weights]


def assert_same(counts, results):
    for expected, *found in zip(one_process(sum(counts)), *results, strict=True):
        for gradient in found:
            torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-11)


@given(counts=st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_double_backward_through_collectives_gives_the_gradients_of_one_process(counts):
    assert_same(counts, run_rank_threads(len(counts), lambda world: many_ranks(world, counts, by_double_backward)))


@pytest.mark.parametrize("counts", [[3], [2, 3], [2, 0, 1]])
@pytest.mark.parametrize("route", [by_double_backward, by_tangent])
def test_both_routes_through_collectives_on_processes_give_the_gradients_of_one(route, counts):
    assert_same(counts, run_rank_processes(len(counts), lambda world: many_ranks(world, counts, route)))
