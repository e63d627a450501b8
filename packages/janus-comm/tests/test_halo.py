"""Ghost rows are the rows their owners have, and what ghosts owe comes home in one order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_comm import Chain, SingleRank, identity_exchange, make_exchange, make_halo, plan_halo
from janus_comm.testing import run_rank_processes, run_rank_threads


@st.composite
def partitions(draw):
    """How many rows each rank owns, and which of them each rank sends to each other; some own nothing."""
    size = draw(st.integers(1, 4))
    owned = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    lists = [
        [
            draw(st.lists(st.integers(0, owned[s] - 1), unique=True, max_size=owned[s])) if s != r and owned[s] else []
            for r in range(size)
        ]
        for s in range(size)
    ]
    return owned, lists


def plan_of(rank, owned, lists):
    return plan_halo(owned[rank], lists[rank], [len(lists[source][rank]) for source in range(len(owned))])


def rows_of(rank, count, dtype=torch.float64):
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(count, 2, generator=generator, dtype=torch.float64).to(dtype)


@given(partition=partitions())
def test_a_halo_appends_the_rows_that_their_owners_have(partition):
    owned, lists = partition
    size = len(owned)

    def appended(communicator):
        halo = make_halo(plan_of(communicator.rank, owned, lists), make_exchange(communicator))
        return halo(rows_of(communicator.rank, owned[communicator.rank])).detach()

    for rank, rows in enumerate(run_rank_threads(size, appended)):
        expected = [*rows_of(rank, owned[rank])]
        for source in range(size):
            expected += [rows_of(source, owned[source])[row] for row in lists[source][rank]]
        assert [row.tolist() for row in rows] == [row.tolist() for row in expected]


def cotangents_at_home(communicator, owned, lists, dtype):
    """Gradient of own rows when every row of the halo has a cotangent of its own."""
    rank = communicator.rank
    rows = rows_of(rank, owned[rank], dtype).requires_grad_()
    chain = Chain(rows)
    appended = make_halo(plan_of(rank, owned, lists), make_exchange(communicator, chain))(rows)
    weights = rows_of(100 + rank, len(appended), dtype)
    result = chain.join((appended * weights).sum())
    (gradient,) = torch.autograd.grad(result, rows)
    return weights, gradient


def added_by_hand(owned, lists, weights, rank, dtype):
    """The sum for each owned row: ghosts in the order of the ranks, in at least float32, and the row's own."""
    wide = torch.promote_types(dtype, torch.float32)
    total = torch.zeros(owned[rank], 2, dtype=wide)
    for target in range(len(owned)):
        first = owned[target] + sum(len(lists[source][target]) for source in range(rank))
        for place, row in enumerate(lists[rank][target]):
            total[row] += weights[target][first + place].to(wide)
    return total.to(dtype) + weights[rank][: owned[rank]]


@given(partition=partitions(), dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
def test_what_ghosts_owe_is_added_in_the_order_of_the_ranks_bit_for_bit(partition, dtype):
    owned, lists = partition
    results = run_rank_threads(len(owned), lambda ranks: cotangents_at_home(ranks, owned, lists, dtype))
    weights = [each for each, _ in results]
    for rank, (_, gradient) in enumerate(results):
        assert torch.equal(gradient, added_by_hand(owned, lists, weights, rank, dtype))


@pytest.mark.parametrize("run", [run_rank_threads, run_rank_processes])
def test_rows_that_everybody_needs_are_added_in_one_order(run):
    """Three ghosts of each row: the order of their sum shows in its bits."""
    owned, lists = [5] * 4, [[[] if s == r else [4, 2, 0, 1, 3] for r in range(4)] for s in range(4)]
    results = run(4, lambda ranks: cotangents_at_home(ranks, owned, lists, torch.float32))
    weights = [each for each, _ in results]
    assert all(
        torch.equal(gradient, added_by_hand(owned, lists, weights, rank, torch.float32))
        for rank, (_, gradient) in enumerate(results)
    )


@given(count=st.integers(0, 3))
def test_the_halo_of_one_rank_is_its_own_rows(count):
    rows = rows_of(0, count)
    for exchange in (identity_exchange, make_exchange(SingleRank())):
        assert torch.equal(make_halo(plan_halo(count, [[]], [0]), exchange)(rows), rows)


@pytest.mark.parametrize(
    ("send_lists", "message"),
    [
        ([[], [2]], r"send_lists\[1\] names rows outside 0\.\.1"),
        ([[-1], []], r"send_lists\[0\] names rows outside 0\.\.1"),
        ([[], [1, 0, 1]], r"send_lists\[1\] names a row twice"),
        ([[]], "1 send lists but 2 receive counts"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(send_lists, message):
    with pytest.raises(ValueError, match=message):
        plan_halo(2, send_lists, [0, 0])


def test_rows_that_the_plan_is_not_for_are_refused():
    halo = make_halo(plan_halo(2, [[]], [0]), identity_exchange)
    with pytest.raises(ValueError, match=r"the plan is for 2 owned rows, but the tensor has \[3, 1\]"):
        halo(torch.ones(3, 1))


def test_a_plan_moves_to_the_device_of_its_rows():
    plan = plan_halo(2, [[], [1]], [0, 1]).to("meta")
    assert plan.send_rows.device.type == "meta"
    assert (plan.send_counts, plan.receive_counts) == ((0, 1), (0, 1))
    with pytest.raises(ValueError, match=r"rows are on cpu, but the plan is on meta; use plan\.to\(rows\.device\)"):
        make_halo(plan, identity_exchange)(torch.ones(2, 1))
