"""Ranks that disagree all raise, and nothing has moved by then."""

import pytest
import torch

from janus_comm import Checked, RankFailed, SingleRank
from janus_comm.testing import check_communicator, run_rank_processes, run_rank_threads


def test_a_checked_communicator_obeys_the_laws():
    table = [[1, 0], [2, 1]]
    run_rank_threads(2, lambda communicator: check_communicator(Checked(communicator), table))
    check_communicator(Checked(SingleRank()), [[2]])


class Recorded:
    """A communicator that keeps the names of the methods that were called."""

    def __init__(self, communicator):
        self._communicator = communicator
        self.called = []

    def __getattr__(self, name):
        self.called.append(name)
        return getattr(self._communicator, name)


def one_each(ranks):
    return [1] * ranks.size


DISAGREEMENTS = [
    (
        lambda ranks: ranks.sum(torch.ones(2 + (ranks.rank == 1))),
        "ranks disagree on call 1: rank 0, 2 calls sum of float32[2]; rank 1 calls sum of float32[3]",
    ),
    (
        lambda ranks: ranks.sum(torch.ones(2, dtype=torch.int64 if ranks.rank == 0 else torch.float32)),
        "ranks disagree on call 1: rank 1, 2 calls sum of float32[2]; rank 0 calls sum of int64[2]",
    ),
    (
        lambda ranks: ranks.gather_object(1) if ranks.rank == 2 else ranks.barrier(),
        "ranks disagree on call 1: rank 0, 1 calls barrier; rank 2 calls gather_object",
    ),
    (
        lambda ranks: ranks.gather_rows(torch.ones(1, 2), [1, 1, 1] if ranks.rank else [1, 2, 1]),
        "ranks disagree on call 1: rank 1, 2 calls gather_rows of float32[2] by [1, 1, 1]; "
        "rank 0 calls gather_rows of float32[2] by [1, 2, 1]",
    ),
    (
        lambda ranks: ranks.reduce_scatter_rows(torch.ones(3, 1 + (ranks.rank == 1)), one_each(ranks)),
        "ranks disagree on call 1: rank 0, 2 calls reduce_scatter_rows of float32[1] by [1, 1, 1]; "
        "rank 1 calls reduce_scatter_rows of float32[2] by [1, 1, 1]",
    ),
    (
        lambda ranks: ranks.exchange_rows(
            torch.ones(3), one_each(ranks), [1, 1, 2] if ranks.rank == 1 else one_each(ranks)
        ),
        "ranks disagree on call 1, exchange_rows of float32[]: "
        "rank 2 sends 1 rows to rank 1 in exchange_rows, which expects 2",
    ),
]


@pytest.mark.parametrize("run", [run_rank_threads, run_rank_processes])
@pytest.mark.parametrize(("call", "message"), DISAGREEMENTS)
def test_ranks_that_disagree_all_raise_the_same_before_anything_moves(run, call, message):
    def attempt(communicator):
        recorded = Recorded(communicator)
        with pytest.raises(RankFailed) as caught:
            call(Checked(recorded))
        return str(caught.value), [name for name in recorded.called if name not in ("rank", "size")]

    assert run(3, attempt) == [(message, ["gather_object"])] * 3


def test_an_argument_that_one_rank_refuses_ends_all_of_them():
    def attempt(communicator):
        checked = Checked(communicator)
        with pytest.raises((RankFailed, TypeError)) as caught:
            checked.sum(torch.ones(2, dtype=torch.bool if communicator.rank == 1 else torch.float32))
        return str(caught.value)

    refused = "sum cannot add booleans; pass tensor.to(torch.int64)"
    told = f"rank 1 of 3 failed in sum of bool[2] (call 1): TypeError: {refused}"
    assert run_rank_threads(3, attempt) == [told, refused, told]


def test_a_rank_that_has_made_another_number_of_calls_is_named():
    def attempt(communicator):
        checked = Checked(communicator)
        checked.barrier()
        if communicator.rank == 1:
            checked = Checked(communicator)
        checked.sum(torch.ones(1))

    expected = (
        r"ranks have called a different number of collectives: rank 0, 2 makes call 2, sum of float32\[1\]; "
        r"rank 1 makes call 1, sum of float32\[1\]"
    )
    with pytest.raises(RankFailed, match=expected):
        run_rank_threads(3, attempt)


def test_parts_of_a_checked_communicator_are_checked():
    def attempt(communicator):
        part = Checked(communicator).split(communicator.rank // 2)
        part.sum(torch.ones(1 + communicator.rank % 2))

    with pytest.raises(RankFailed, match=r"rank 0 calls sum of float32\[1\]; rank 1 calls sum of float32\[2\]"):
        run_rank_threads(4, attempt)


def test_a_rank_that_others_wait_for_is_named_with_what_they_wait_to_do():
    def attempt(communicator):
        if communicator.rank == 0:
            Checked(communicator).sum(torch.ones(2))

    expected = r"rank 1 has returned, but rank 0 waits for it in gather_object, before call 1, sum of float32\[2\]"
    with pytest.raises(RankFailed, match=expected):
        run_rank_threads(2, attempt)
