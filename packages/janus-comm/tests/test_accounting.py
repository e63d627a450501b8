"""What is counted is what is predicted, and what is predicted is what has to leave a rank."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_comm import (
    Accounting,
    Chain,
    Counted,
    RankFailed,
    SingleRank,
    Tally,
    all_gather,
    all_reduce,
    all_to_all,
    make_halo,
    make_mesh,
    plan_halo,
    reduce_scatter,
)
from janus_comm.accounting import bytes_of_exchange, bytes_of_gather, bytes_of_reduce_scatter, bytes_of_sum
from janus_comm.testing import run_rank_threads

size_and_counts = st.lists(st.integers(0, 4), min_size=1, max_size=4)


def messages(size, pieces):
    """Bytes that leave each rank when ``pieces(source, target)`` bytes go from each rank to each other one."""
    sent = [0] * size
    for source in range(size):
        for target in range(size):
            if source != target:
                sent[source] += pieces(source, target)
    return sent


@given(counts=size_and_counts, width=st.integers(0, 3))
def test_counted_bytes_are_those_of_the_messages_between_ranks(counts, width):
    size, row = len(counts), width * 8

    def count(communicator):
        rank = communicator.rank
        accounting = Accounting()
        counted = Counted(communicator, accounting)
        everything = torch.zeros(sum(counts), width, dtype=torch.float64)
        counted.gather_rows(everything[: counts[rank]], counts)
        counted.reduce_scatter_rows(everything, counts)
        counted.exchange_rows(everything, counts, [counts[rank]] * size)
        counted.sum(everything)
        counted.gather_object("free")
        counted.barrier()
        return accounting.tallies

    elements = sum(counts) * width
    parts = [len(range(rank, elements, size)) for rank in range(size)]
    gathered = messages(size, lambda source, _: counts[source] * row)
    scattered = messages(size, lambda _, target: counts[target] * row)
    summed = messages(size, lambda source, target: (parts[source] + parts[target]) * 8)
    for rank, tallies in enumerate(run_rank_threads(size, count)):
        assert tallies == {
            ("gather_rows", ""): Tally(1, gathered[rank]),
            ("reduce_scatter_rows", ""): Tally(1, scattered[rank]),
            ("exchange_rows", ""): Tally(1, scattered[rank]),
            ("sum", ""): Tally(1, summed[rank]),
            ("gather_object", ""): Tally(1, 0),
            ("barrier", ""): Tally(1, 0),
        }
    assert sum(summed) == 2 * (size - 1) * elements * 8


@given(counts=size_and_counts, row=st.integers(0, 9), elements=st.integers(0, 9))
def test_formulas_agree_where_operations_do(counts, row, elements):
    size = len(counts)
    for rank in range(size):
        assert bytes_of_reduce_scatter(counts, row, rank) == bytes_of_exchange(counts, row, rank)
        assert bytes_of_gather(counts, row, rank) == bytes_of_exchange([counts[rank]] * size, row, rank)
    assert bytes_of_sum(elements, row, 0, 1) == 0


def collective(name, communicator, table, chain):
    """A collective of rows, and what one rank sends in it and in its adjoint: kind and bytes of rows of eight bytes."""
    rank, size = communicator.rank, communicator.size
    send_counts, receive_counts = table[rank], [row[rank] for row in table]
    counts = [sum(row) for row in table]
    gather = ("gather_rows", bytes_of_gather(counts, 8, rank))
    scatter = ("reduce_scatter_rows", bytes_of_reduce_scatter(counts, 8, rank))
    there = ("exchange_rows", bytes_of_exchange(send_counts, 8, rank))
    back = ("exchange_rows", bytes_of_exchange(receive_counts, 8, rank))
    reduce = ("sum", bytes_of_sum(counts[0], 8, rank, size))
    if name == "all_reduce":
        return counts[0], lambda rows: all_reduce(rows, communicator, chain), reduce, reduce
    if name == "all_gather":
        return counts[rank], lambda rows: all_gather(rows, communicator, counts, chain), gather, scatter
    if name == "reduce_scatter":
        return sum(counts), lambda rows: reduce_scatter(rows, communicator, counts, chain), scatter, gather
    if name == "all_to_all":
        call = lambda rows: all_to_all(rows, communicator, send_counts, receive_counts, chain)  # noqa: E731
        return counts[rank], call, there, back
    # A halo: what a rank keeps is not sent, and its rows go from a stock that is large enough for each message.
    owned = max(send_counts)
    lists = [range(0 if target == rank else count) for target, count in enumerate(send_counts)]
    plan = plan_halo(owned, lists, [0 if source == rank else count for source, count in enumerate(receive_counts)])
    return owned, make_halo(plan, lambda rows, *sides: all_to_all(rows, communicator, *sides, chain)), there, back


@st.composite
def collectives(draw):
    size = draw(st.integers(1, 3))
    row = st.lists(st.integers(0, 3), min_size=size, max_size=size)
    name = draw(st.sampled_from(["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "halo"]))
    return name, draw(st.lists(row, min_size=size, max_size=size))


@given(drawn=collectives())
def test_formulas_predict_calls_and_bytes_of_forward_inner_and_outer_pass(drawn):
    """A collective once in the forward pass; its adjoint in the inner one; the derivatives of both in the outer one."""
    name, table = drawn

    def count(communicator):
        accounting = Accounting()
        counted = Counted(communicator, accounting)
        # The number of rows is needed for the chain that the collective needs: made once for each.
        rows, *_ = collective(name, counted, table, None)
        own = torch.ones(rows, 1, dtype=torch.float64, requires_grad=True)
        chain = Chain(own)
        _, call, there, back = collective(name, counted, table, chain)
        with accounting.phase("forward"):
            energy = chain.join((call(own) ** 3).sum())
        with accounting.phase("inner"):
            (gradient,) = torch.autograd.grad(energy, own, create_graph=True)
        with accounting.phase("outer"):
            chain.join((gradient**2).sum() + energy, gradient).backward()
        return accounting.tallies, there, back

    for tallies, there, back in run_rank_threads(len(table), count):
        expected = {(there[0], "forward"): Tally(1, there[1]), (back[0], "inner"): Tally(1, back[1])}
        # The adjoint's derivative is the collective, and its own contribution comes after it through the adjoint.
        for kind, sent in (there, back):
            calls, total = expected.get((kind, "outer"), Tally(0, 0))
            expected[kind, "outer"] = Tally(calls + 1, total + sent)
        assert tallies == expected


def test_phases_and_kinds_are_told_apart():
    def step(communicator):
        accounting = Accounting()
        weights, halo = Counted(communicator, accounting), Counted(communicator, accounting, kind="halo")
        shard = torch.ones(3, 2, requires_grad=True)
        chain = Chain(shard)
        with accounting.phase("forward"):
            gathered = all_gather(shard, weights, [3, 3], chain)
            energy = chain.join((all_reduce(gathered, halo, chain) ** 2).sum())
        with accounting.phase("backward"):
            energy.backward()
            with accounting.phase("log"):
                weights.sum(energy.detach())
            weights.barrier()
        return accounting

    expected = {
        ("gather_rows", "forward"): Tally(1, 3 * 2 * 4),
        ("halo", "forward"): Tally(1, 12 * 4),
        ("halo", "backward"): Tally(1, 12 * 4),
        ("reduce_scatter_rows", "backward"): Tally(1, 3 * 2 * 4),
        ("sum", "log"): Tally(1, 4),
        ("barrier", "backward"): Tally(1, 0),
    }
    for accounting in run_rank_threads(2, step):
        assert accounting.tallies == expected
        assert accounting.total(kind="halo") == Tally(2, 96)
        assert accounting.total(phase="backward") == Tally(3, 72)
        assert accounting.total("halo", "forward") == Tally(1, 48)
        assert accounting.total() == Tally(6, 148)


def test_the_axes_of_a_counted_mesh_are_counted():
    def count(communicator):
        accounting = Accounting()
        mesh = make_mesh(Counted(communicator, accounting), 2, 1)
        mesh.replica_axis.sum(torch.ones(4))
        mesh.unit_axis.sum(torch.ones(4))
        return accounting.total("sum")

    assert run_rank_threads(2, count) == [Tally(2, 16)] * 2


def test_what_is_not_to_be_recorded_leaves_the_tallies_as_they_were():
    accounting = Accounting()
    accounting.record("sum", 3)
    with accounting.unrecorded():
        accounting.record("sum", 4)
        accounting.record("gather_rows", 5)
    assert accounting.tallies == {("sum", ""): (1, 3)}


def test_one_rank_sends_nothing():
    accounting = Accounting()
    counted = Counted(SingleRank(), accounting)
    counted.sum(torch.ones(5))
    counted.gather_rows(torch.ones(5), [5])
    assert accounting.total() == Tally(2, 0)


def test_an_error_inside_phases_has_notes_of_them_and_the_phase_ends():
    accounting = Accounting()
    with pytest.raises(KeyError) as caught, accounting.phase("outer"), accounting.phase("log"):
        raise KeyError("energy")
    assert caught.value.__notes__ == ["in phase 'log'", "in phase 'outer'"]
    assert accounting.present_phase == ""


@pytest.mark.parametrize(("phase", "ending"), [("inner", "in barrier, in phase 'inner'"), (None, "in barrier")])
def test_a_failure_of_another_rank_is_raised_with_the_phase_it_was_met_in(phase, ending):
    def wait(communicator):
        if communicator.rank == 1:
            return
        accounting = Accounting()
        counted = Counted(communicator, accounting)
        if phase is None:
            counted.barrier()
        with accounting.phase(phase):
            counted.barrier()

    with pytest.raises(RankFailed) as caught:
        run_rank_threads(2, wait)
    assert str(caught.value) == f"rank 1 has returned, but rank 0 waits for it {ending}"
