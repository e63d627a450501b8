"""A rank that fails, dies, leaves or disagrees ends all ranks with its message."""

import json
import multiprocessing
import os
import signal
import threading

import pytest
import torch
import torch.distributed as dist

from janus_comm import Accounting, Counted, RankFailed
from janus_comm.last_words import LastWords
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


def counted_step(communicator, interrupt):
    """A sum in one phase and an exchange in another, before which rank 1 is interrupted."""
    accounting = Accounting()
    counted = Counted(communicator, accounting)
    with accounting.phase("forward"):
        counted.sum(torch.ones(3))
    with accounting.phase("inner"):
        if communicator.rank == 1:
            interrupt()
        ones = [1] * communicator.size
        counted.exchange_rows(torch.ones(communicator.size, 2), ones, ones)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_named_with_what_waited_for_it_and_where():
    expected = (
        r"rank 1 of 3 died with exit code -9; rank 1 of 3 died without a word; "
        r"rank [02] waited in exchange_rows \(call 2\), in phase 'inner'"
    )
    with pytest.raises(RankFailed, match=expected):
        run_rank_processes(3, lambda communicator: counted_step(communicator, kill))


def test_a_process_that_ends_by_itself_is_named():
    def end(communicator):
        if communicator.rank == 1:
            os._exit(3)
        threading.Event().wait()

    with pytest.raises(RankFailed, match=r"^rank 1 of 2 died with exit code 3$"):
        run_rank_processes(2, end)


def fail():
    raise ZeroDivisionError("no atoms in frame 7")


@pytest.mark.parametrize("run", [run_rank_threads, run_rank_processes])
def test_ranks_that_wait_for_one_that_raised_are_told_what_and_in_which_phase(run, tmp_path):
    def step(communicator):
        try:
            counted_step(communicator, fail)
        except RankFailed as error:
            (tmp_path / str(communicator.rank)).write_text(str(error))
            raise

    with pytest.raises(ZeroDivisionError, match="no atoms in frame 7") as caught:
        run(2, step)
    assert "in phase 'inner'" in caught.value.__notes__
    if run is run_rank_threads:
        told = (tmp_path / "0").read_text()
        assert told.startswith("rank 1 of 2 failed with ZeroDivisionError: no atoms in frame 7")
        assert told.endswith("in phase 'inner'")


def test_a_failure_inside_a_split_names_ranks_of_the_world():
    def step(communicator):
        part = communicator.split(communicator.rank % 2)
        communicator.barrier()
        if communicator.rank == 3:
            kill()
        part.barrier()

    expected = r"rank 3 of 4 died without a word; rank 1 waited in barrier \(call 1 of ranks \[1, 3\]\)"
    with pytest.raises(RankFailed, match=expected):
        run_rank_processes(4, step)


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

    expected = r"rank 1 of 2 did not arrive; rank 0 waited in barrier \(call 1\): .*Timed out"
    with pytest.raises(RankFailed, match=expected) as caught:
        run_rank_processes(2, wait, timeout=0.5)
    assert caught.value.__notes__[0].startswith("raised on rank 0 of 2")


def test_a_rank_process_that_has_left_is_named():
    def leave(communicator):
        if communicator.rank == 0:
            communicator.barrier()

    with pytest.raises(RankFailed, match=r"rank 1 of 2 has left; rank 0 waited in barrier \(call 1\)"):
        run_rank_processes(2, leave)


def words_of(rank, store):
    return LastWords(store, rank, 4, grace=0)


def test_of_several_reasons_the_first_cause_is_told():
    store, reset = dist.HashStore(), RuntimeError("Connection reset\nby peer")
    rank = [words_of(each, store) for each in range(4)]

    def explained():
        return rank[0].explain(range(4), "barrier (call 7)", reset)

    assert explained() == "rank 1, 2, 3 of 4 did not arrive; rank 0 waited in barrier (call 7): Connection reset"
    rank[3].left()
    assert explained() == "rank 3 of 4 has left; rank 0 waited in barrier (call 7)"
    ended = multiprocessing.get_context("fork").Process(target=int)
    ended.start()
    ended.join()
    place, own = json.loads(store.get("janus_comm/process/2"))
    store.set("janus_comm/process/2", json.dumps(["another host", ended.pid]))
    assert explained() == "rank 3 of 4 has left; rank 0 waited in barrier (call 7)"
    store.set("janus_comm/process/2", json.dumps([place, ended.pid]))
    assert explained() == "rank 2 of 4 died without a word; rank 0 waited in barrier (call 7)"
    assert own == os.getpid()
    error = ValueError("nan in the loss")
    error.add_note("in phase 'outer'")
    rank[1].failed(error)
    assert explained() == (
        "rank 1 of 4 failed with ValueError: nan in the loss, in phase 'outer'; rank 0 waited in barrier (call 7)"
    )


def test_ranks_that_all_stopped_tell_where():
    store = dist.HashStore()
    first, second = words_of(0, store), words_of(1, store)
    second.explain([0, 1], "sum (call 2)", RuntimeError("closed"))
    assert first.explain([0, 1], "barrier (call 2)", RuntimeError("closed")) == (
        "rank 0 waited in barrier (call 2), and all others stopped too: rank 1 stopped in sum (call 2); closed"
    )


class GoneStore:
    """A store whose keeper has gone after everyone joined."""

    def set(self, key, value):
        if "process" not in key:
            raise RuntimeError("Broken pipe")

    def check(self, keys):
        raise RuntimeError("Broken pipe")


def test_a_store_that_is_gone_is_told_instead_of_its_error():
    told = words_of(1, GoneStore()).explain([0, 1], "sum (call 2)", RuntimeError("closed"))
    assert told.startswith("the store that ranks met through is gone, and with it the process that kept it")


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
