"""Force training across ranks is exact, whatever autograd would do with the collectives by itself."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_comm import (
    Accounting,
    Chain,
    Counted,
    KeptResults,
    RankFailed,
    all_gather,
    all_reduce,
    all_to_all,
    connect,
    make_exchange,
    reduce_scatter,
)
from janus_comm.tangents import recompute_block
from janus_comm.testing import run_rank_processes, run_rank_threads

FEATURES = 3


def parameters_of_a_potential():
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(3, FEATURES, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]


def atoms(count):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def energies(positions, weights, everyone):
    """Energies of own atoms that depend on all atoms' positions and, by way of hidden rows, on all pairs of pairs."""
    first, second, third = weights
    hidden = torch.tanh(positions @ first)
    hidden = hidden + torch.sin(positions @ second) * torch.tanh(everyone(positions**3) @ third).sum(0)
    return (hidden * torch.cos(everyone(hidden)).sum(0)).sum()


def loss_of(energy, forces):
    return energy**2 + ((forces - 0.3) ** 3).sum()


def one_process(count):
    weights, positions = parameters_of_a_potential(), atoms(count).requires_grad_()
    energy = energies(positions, weights, lambda rows: rows)
    (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
    loss = energy + loss_of(torch.zeros(()), -gradient)
    return gradient.detach(), torch.autograd.grad(loss, weights)


def many_ranks(communicator, counts):
    weights = parameters_of_a_potential()
    start = sum(counts[: communicator.rank])
    positions = atoms(sum(counts))[start : start + counts[communicator.rank]].requires_grad_()
    chain = Chain(positions, *weights)
    if counts[communicator.rank]:
        everyone = lambda rows: all_gather(rows, communicator, counts, chain)  # noqa: E731
        energy = energies(positions, weights, everyone)
    else:
        # A rank without atoms computes nothing: it takes part in the two gathers, and uses neither.
        energy = torch.zeros((), dtype=torch.float64)
        for width in (3, FEATURES):
            all_gather(torch.zeros(0, width, dtype=torch.float64), communicator, counts, chain)
    energy = chain.join(energy)
    (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
    loss = energy
    if counts[communicator.rank]:
        loss = loss + loss_of(torch.zeros(()), -gradient)
    weight_gradients = torch.autograd.grad(chain.join(loss, gradient), weights)
    return gradient.detach(), [communicator.sum(gradient) for gradient in weight_gradients]


def assert_equal_to_one_process(counts, results):
    forces, weight_gradients = one_process(sum(counts))
    tolerance = {"rtol": 1e-11, "atol": 1e-11 * float(max(g.abs().max() for g in [*weight_gradients, torch.ones(1)]))}
    torch.testing.assert_close(torch.cat([force for force, _ in results]), forces, **tolerance)
    for _, summed in results:
        for actual, expected in zip(summed, weight_gradients, strict=True):
            torch.testing.assert_close(actual, expected, **tolerance)


@given(counts=st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_gradients_of_a_force_loss_do_not_depend_on_the_ranks_and_their_atoms(counts):
    assert_equal_to_one_process(counts, run_rank_threads(len(counts), lambda ranks: many_ranks(ranks, counts)))


@pytest.mark.parametrize("counts", [[2, 0], [0, 1, 3]])
def test_gradients_of_a_force_loss_on_processes_are_those_of_one(counts):
    assert_equal_to_one_process(counts, run_rank_processes(len(counts), lambda ranks: many_ranks(ranks, counts)))


def gradient_with_an_idle_rank(communicator, make_chain):
    """Rank 1 has a position that its energy, zero, does not depend on."""
    position = torch.full((1,), 2.0, requires_grad=True)
    chain = make_chain(position)
    total = all_reduce(position**2, communicator, chain)
    energy = total.sum() if communicator.rank == 0 else position.sum() * 0
    if chain is not None:
        energy = chain.join(energy)
    (gradient,) = torch.autograd.grad(energy, position)
    return gradient.item()


def test_a_rank_that_uses_no_result_leaves_its_peers_alone_without_a_chain():
    with pytest.raises(RankFailed, match="rank 1 has returned, but rank 0 waits for it in sum"):
        run_rank_threads(2, lambda communicator: gradient_with_an_idle_rank(communicator, lambda *_: None))


def test_a_rank_that_uses_no_result_takes_part_with_a_chain():
    assert run_rank_threads(2, lambda communicator: gradient_with_an_idle_rank(communicator, Chain)) == [4.0, 4.0]
    assert run_rank_processes(2, lambda communicator: gradient_with_an_idle_rank(communicator, Chain)) == [4.0, 4.0]


def gradient_with_two_independent_exchanges(communicator, make_chain):
    """Two exchanges that autograd, left alone, runs backward in another order on rank 1.

    It prefers nodes that were made later, by a counter of each thread. A GPU's backward pass runs in a thread of its
    own, so that nodes of an inner pass compare with those of the forward pass as chance has it; here a second thread
    makes one of two nodes, with a counter that is ahead on rank 1 only.
    """
    rows = torch.tensor([[1.0], [2.0]], requires_grad=True)
    chain = make_chain(rows)
    results = {}

    def call(name, values):
        results[name] = all_to_all(values, communicator, [1, 1], [1, 1], chain)

    def call_in_second_thread():
        for _ in range(1000 * communicator.rank):
            rows.detach().requires_grad_().exp()
        call("second", rows**3)

    for _ in range(100):
        rows.detach().requires_grad_().exp()
    call("first", rows**2)
    thread = threading.Thread(target=call_in_second_thread)
    thread.start()
    thread.join()
    weight = communicator.rank + 1.0
    energy = weight * results["first"].sum() + 10 * weight * results["second"].sum()
    if chain is not None:
        energy = chain.join(energy)
    (gradient,) = torch.autograd.grad(energy, rows)
    return gradient.flatten().tolist()


def test_a_chain_keeps_the_order_of_collectives_that_autograd_would_swap():
    # d/dx of w x² + 10 w x³ at 1 and 2, with w = 1 for the row sent to rank 0 and 2 for the row sent to rank 1.
    expected = [[2.0 + 30.0, 2 * (4.0 + 120.0)]] * 2
    with_chain = run_rank_threads(2, lambda ranks: gradient_with_two_independent_exchanges(ranks, Chain))
    without = run_rank_threads(2, lambda ranks: gradient_with_two_independent_exchanges(ranks, lambda *_: None))
    assert with_chain == expected
    assert without != expected


def collectives_of_an_outer_pass(communicator, make_chain):
    """Names, in order, of the collectives of an outer pass whose inner pass was made by another thread.

    That is how it is on a GPU. Inner and forward part do not depend on each other's values: the energy is quadratic.
    """
    calls = []

    class Named:
        rank, size = communicator.rank, communicator.size

        def sum(self, tensor):
            calls.append("sum")
            return communicator.sum(tensor)

        def exchange_rows(self, rows, send_counts, receive_counts):
            calls.append("exchange_rows")
            return communicator.exchange_rows(rows, send_counts, receive_counts)

    position = torch.full((2, communicator.rank + 1), 0.5, requires_grad=True)
    for _ in range(1000):
        position.exp()
    chain, named, gradients = make_chain(position), Named(), []
    exchanged = all_to_all((position**2).sum(1, keepdim=True), named, [1, 1], [1, 1], chain)
    energy = exchanged.sum() + all_reduce(position.sum(), named, chain) ** 2
    if chain is not None:
        energy = chain.join(energy)
    inner = threading.Thread(target=lambda: gradients.extend(torch.autograd.grad(energy, position, create_graph=True)))
    inner.start()
    inner.join()
    del calls[:]
    loss = (gradients[0] ** 2).sum() + energy
    if chain is not None:
        loss = chain.join(loss, gradients[0])
    torch.autograd.grad(loss, position)
    return calls


def test_an_outer_pass_runs_the_inner_one_first_whatever_thread_made_that():
    expected = ["exchange_rows", "sum", "sum", "exchange_rows"]
    assert run_rank_threads(2, lambda ranks: collectives_of_an_outer_pass(ranks, Chain)) == [expected] * 2
    without = run_rank_threads(2, lambda ranks: collectives_of_an_outer_pass(ranks, lambda *_: None))
    assert without != [expected] * 2


def test_connect_leaves_values_alone_and_gives_gradients_of_zero():
    result = torch.tensor([float("inf"), 1.0])
    tensor = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    connected = connect(result, tensor)
    assert torch.equal(connected, result)
    cotangent = torch.full((2,), float("nan"), requires_grad=True)
    (first,) = torch.autograd.grad(connected, tensor, cotangent, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), cotangent)
    assert torch.equal(first, torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(second, torch.zeros(2))


def test_a_rank_whose_rows_need_no_gradient_still_sends_its_peers_theirs():
    def gradient(communicator):
        rows = torch.ones(2, 1, requires_grad=communicator.rank == 0)
        received = make_exchange(communicator)(rows, [1, 1], [1, 1])
        (received.sum() * (communicator.rank + 1)).backward()
        return None if rows.grad is None else rows.grad.flatten().tolist()

    assert run_rank_threads(2, gradient) == [[1.0, 2.0], None]


@given(counts=st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_gather_after_reduce_scatter_is_all_reduce(counts):
    def difference(communicator):
        generator = torch.Generator().manual_seed(communicator.rank)
        rows = torch.randn(sum(counts), 2, generator=generator)
        parts = reduce_scatter(rows, communicator, counts)
        return torch.equal(all_gather(parts, communicator, counts), all_reduce(rows, communicator))

    assert all(run_rank_threads(len(counts), difference))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_checkpointed_function_gets_again_what_other_ranks_sent_the_first_time(ranks):
    def on_rank(world):
        counted = Accounting()
        communicator = Counted(world, counted)
        start = torch.full((world.rank + 1, 2), 0.3, dtype=torch.float64) * (1 + world.rank)

        def gradients(again: bool):
            rows, kept = start.clone().requires_grad_(), KeptResults()
            chain, runs = Chain(rows), []

            def block(features):
                runs.append(len(runs))
                if again and len(runs) > 1:
                    inner = Chain(features, kept=kept.again())
                    return inner.join(torch.sin(features) * all_reduce(features.sum().cos(), communicator, inner))
                with chain.keeping(kept.begin()):
                    return torch.sin(features) * all_reduce(features.sum().cos(), communicator, chain)

            found = recompute_block(block, rows) if again else block(rows)
            energy = chain.join(found.square().sum())
            (force,) = torch.autograd.grad(energy, rows, create_graph=True)
            chain.join(force.square().sum(), force).backward()
            return rows.grad, len(runs), counted.total("sum").calls

        plain, once, calls = gradients(again=False)
        found, runs, all_calls = gradients(again=True)
        assert once == 1
        assert runs > 1
        assert all_calls == 2 * calls  # no call more than without checkpointing
        return float((found - plain).abs().max())

    assert max(run_rank_threads(ranks, on_rank)) < 1e-14
