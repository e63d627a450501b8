"""What is counted is what is predicted, and what is predicted is what has to leave a rank."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_comm import Accounting, Chain, Counted, SingleRank, Tally, all_gather, all_reduce, make_mesh
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


def test_one_rank_sends_nothing():
    accounting = Accounting()
    counted = Counted(SingleRank(), accounting)
    counted.sum(torch.ones(5))
    counted.gather_rows(torch.ones(5), [5])
    assert accounting.total() == Tally(2, 0)
