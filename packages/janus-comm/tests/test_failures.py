"""A rank that fails, dies, leaves or disagrees ends all ranks with its message."""

import os
import threading

import pytest
import torch

from janus_comm import RankFailed
from janus_comm.testing import run_rank_processes, run_rank_threads


def failing_rank(communicator):
    if communicator.rank == 1:
        raise ZeroDivisionError("no atoms in frame 7")
    communicator.barrier()


@pytest.mark.parametrize("run", [run_rank_threads, run_rank_processes])
def test_the_error_of_a_rank_reaches_the_caller_with_a_note_of_the_rank(run):
    with pytest.raises(ZeroDivisionError, match="no atoms in frame 7") as caught:
        run(3, failing_rank)
    assert any(note.startswith("raised on rank 1 of 3") for note in caught.value.__notes__)


def test_the_other_rank_threads_learn_which_rank_failed():
    told = []

    def listen(communicator):
        try:
            failing_rank(communicator)
        except RankFailed as error:
            told.append(str(error))
            raise

    with pytest.raises(ZeroDivisionError):
        run_rank_threads(3, listen)
    assert told == ["rank 1 of 3 failed with ZeroDivisionError: no atoms in frame 7"] * 2


def test_a_failure_reaches_ranks_of_other_groups():
    def work(communicator):
        part = communicator.split(communicator.rank // 2)
        if communicator.rank == 0:
            raise ValueError("first group")
        part.barrier()
        communicator.barrier()

    with pytest.raises(ValueError, match="first group"):
        run_rank_threads(4, work)


def test_a_process_that_dies_is_named():
    def die(communicator):
        if communicator.rank == 1:
            os._exit(3)
        communicator.barrier()

    with pytest.raises(RankFailed, match="rank 1 of 2 died with exit code 3"):
        run_rank_processes(2, die)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda ranks: ranks.sum(torch.ones(2 + ranks.rank)),
            r"rank 0 calls sum of float32\[2\]; rank 1 calls sum of float32\[3\]",
        ),
        (
            lambda ranks: ranks.sum(torch.ones(2, dtype=[torch.float32, torch.int64][ranks.rank])),
            r"rank 0 calls sum of float32\[2\]; rank 1 calls sum of int64\[2\]",
        ),
        (
            lambda ranks: ranks.barrier() if ranks.rank else ranks.gather_object(1),
            "rank 0 calls gather_object; rank 1 calls barrier",
        ),
        (
            lambda ranks: ranks.gather_rows(torch.ones(1, 2), [1, 1] if ranks.rank else [1, 2]),
            r"rank 0 calls gather_rows of float32\[2\] by \[1, 2\]; rank 1 calls .* by \[1, 1\]",
        ),
        (
            lambda ranks: ranks.exchange_rows(torch.ones(1), *([[0, 1], [0, 1]] if ranks.rank == 0 else [[0, 1]] * 2)),
            "rank 0 sends 1 rows to rank 1 in exchange_rows, which expects 0",
        ),
    ],
)
def test_rank_threads_that_disagree_all_raise_and_say_how(call, message):
    raised = []

    def attempt(communicator):
        try:
            call(communicator)
        except RankFailed as error:
            raised.append(str(error))

    run_rank_threads(2, attempt)
    assert len(raised) == 2
    assert raised[0] == raised[1]
    with pytest.raises(RankFailed, match=message):
        run_rank_threads(2, call)


def test_a_rank_thread_that_never_arrives_is_named():
    gave_up = threading.Event()

    def wait(communicator):
        if communicator.rank == 1:
            gave_up.wait()
            return
        try:
            communicator.barrier()
        finally:
            gave_up.set()

    with pytest.raises(RankFailed, match=r"rank 0 waited 0\.01 s in barrier for rank 1"):
        run_rank_threads(2, wait, timeout=0.01)


def test_a_rank_process_that_never_arrives_ends_the_others():
    def wait(communicator):
        if communicator.rank == 1:
            threading.Event().wait()
        communicator.barrier()

    with pytest.raises(RuntimeError, match="Timed out") as caught:
        run_rank_processes(2, wait, timeout=0.5)
    assert caught.value.__notes__[0].startswith("raised on rank 0 of 2")


@pytest.mark.parametrize("run", [run_rank_threads, run_rank_processes])
def test_results_come_in_the_order_of_the_ranks(run):
    assert run(3, lambda communicator: (communicator.rank, communicator.size)) == [(0, 3), (1, 3), (2, 3)]


def test_rank_threads_share_no_objects_they_send():
    def send(communicator):
        mine = [communicator.rank]
        received = communicator.gather_object(mine)
        received[communicator.rank].append("changed")
        communicator.barrier()
        return mine

    assert run_rank_threads(2, send) == [[0], [1]]


def test_rank_threads_refuse_tensors_elsewhere():
    with pytest.raises(ValueError, match="rank threads hold tensors on the CPU, not on meta"):
        run_rank_threads(2, lambda communicator: communicator.sum(torch.ones(2, device="meta")))
