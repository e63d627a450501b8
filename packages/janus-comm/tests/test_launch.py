"""Ranks join as their launcher's environment says, or stop with a message."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from janus_comm import Accounting, Checked, Counted, LaunchError, Place, RankFailed, SingleRank, launch
from janus_comm.launch import _device_of_rank
from janus_comm.testing import run_rank_processes

RANKS = """
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed

from janus_comm import RankFailed, all_reduce, launch

with launch(device="cpu") as launched:
    world = launched.world
    total = all_reduce(torch.tensor([world.rank + 1.0]), world)
    if world.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    world.barrier()
    Path(sys.argv[1], str(world.rank)).write_text(f"{world.size} {total.item()} {launched.device}")
assert not torch.distributed.is_initialized()
try:
    world.barrier()
except RankFailed as error:
    assert "a group that has ended" in str(error)
else:
    raise AssertionError("a barrier of a group that has ended")
"""


@pytest.fixture
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_", "OMPI_", "PMI_", "PMIX_", "SLURM_")):
            monkeypatch.delenv(name)
    return monkeypatch


def test_ranks_that_torchrun_starts_again_find_each_other_and_not_those_that_died(tmp_path, environment):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    done = subprocess.run(
        [*command, "--master-port", free_port(), str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("exitcode: -9") == 1
    assert [Path(tmp_path, str(rank)).read_text() for rank in range(2)] == ["2 3.0 cpu"] * 2


@pytest.mark.parametrize("size", [None, "1"])
def test_one_process_needs_no_launcher(environment, size):
    if size is not None:
        environment.setenv("WORLD_SIZE", size)
    with launch() as launched:
        assert isinstance(launched.world, SingleRank)
        assert launched.device == torch.device("cpu")
    assert not torch.distributed.is_initialized()


def test_an_incomplete_environment_is_refused(environment):
    environment.setenv("WORLD_SIZE", "2")
    environment.setenv("RANK", "0")
    with (
        pytest.raises(LaunchError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not; start with torchrun"),
        launch(),
    ):
        pass


@pytest.mark.parametrize("size", ["0", "two"])
def test_a_world_size_that_is_no_number_of_ranks_is_refused(environment, size):
    environment.setenv("WORLD_SIZE", size)
    with pytest.raises(LaunchError, match=f"WORLD_SIZE={size} is not a number of ranks"), launch():
        pass


def test_a_device_that_is_not_there_is_refused(environment):
    absent = torch.device("cuda", torch.cuda.device_count())
    with pytest.raises(LaunchError, match="use device=cpu or start fewer ranks a node"), launch(absent):
        pass
    with pytest.raises(LaunchError, match="device=mps is not supported; use cpu or cuda"), launch("mps"):
        pass


def test_a_second_process_group_is_refused():
    def again(communicator):
        os.environ.update(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
        with pytest.raises(LaunchError, match="a process group exists already"), launch():
            pass

    run_rank_processes(2, again)


def test_ranks_that_srun_starts_find_each_other(environment):
    def body(launched):
        return launched.world.gather_object(launched.world.rank)

    assert answers_within_the_stated_time(*launched_processes(2, body, by_srun)) == [[0, 1]] * 2


@pytest.mark.parametrize(("by", "visible", "index"), [("srun", 1, 0), ("srun", 4, 3), ("torchrun", 4, 3)])
def test_a_rank_takes_the_gpu_of_its_number_or_the_only_one_it_is_shown(by, visible, index, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    place = Place(by, 8, 3, 3, "n1", 1234)
    assert _device_of_rank(torch.device("cuda"), place) == torch.device("cuda", index)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(LaunchError, match="needs GPU 3, but torch sees 1"):
        _device_of_rank(torch.device("cuda"), Place("torchrun", 8, 3, 3, "n1", 1234))


TIMEOUT = 1.0
STATED = 3 * TIMEOUT + 30
"""Seconds: a timeout for the collective, one for words of the others, one for them to read; the rest is for a machine
that is busy with something else."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def by_torchrun(rank, size, port):
    """What it would say."""
    return {
        "WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip


def by_srun(rank, size, port):
    return {
        "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(size), "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank), "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": port,
    }  # fmt: skip


def launched_processes(size, body, by=by_torchrun, **options):
    """What ``body(launched)`` returns on each rank, or the message of its RankFailed; None where the rank is killed."""
    context = multiprocessing.get_context("fork")
    port = free_port()
    joined = context.Barrier(size + 1)

    def main(rank, answer):
        torch.set_num_threads(1)
        os.environ.update(by(rank, size, port))
        try:
            with launch(**options) as launched:
                joined.wait(60)
                answer.send(body(launched))
        except RankFailed as error:
            answer.send(str(error))

    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    processes = [context.Process(target=main, args=(rank, pipes[rank][1]), daemon=True) for rank in range(size)]
    try:
        for process in processes:
            process.start()
        joined.wait(60)
        return processes, [ours for ours, _ in pipes]
    except BaseException:
        for process in processes:
            process.kill()
        raise


def said(pipe):
    try:
        return pipe.recv() if pipe.poll() else None
    except EOFError:
        return None


def answers_within_the_stated_time(processes, pipes, release=lambda: None, held=()):
    """What every rank but those that are held says; all of them have ended by the stated time."""
    try:
        for rank, process in enumerate(processes):
            if rank not in held:
                process.join(STATED)
                assert process.exitcode is not None, f"rank {rank} goes on"
        release()
        for process in processes:
            process.join(STATED)
            assert process.exitcode is not None
        return [said(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.kill()


def step_with(interrupt):
    """A sum, and an exchange in a phase of its own, before which rank 1 is interrupted."""

    def body(launched):
        accounting = Accounting()
        world = Counted(launched.world, accounting)
        world.sum(torch.ones(3))
        with accounting.phase("outer"):
            if world.rank == 1:
                interrupt()
            ones = [1] * world.size
            return world.exchange_rows(torch.ones(world.size, 2), ones, ones).tolist()

    return body


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise ZeroDivisionError("no atoms in frame 7")


@pytest.mark.parametrize(
    ("interrupt", "told"),
    [
        (fail, "rank 1 of 3 failed with ZeroDivisionError: no atoms in frame 7, in phase 'outer'"),
        (kill, "rank 1 of 3 died without a word"),
    ],
)
def test_launched_ranks_end_with_one_that_fails_or_dies_and_say_which_and_where(interrupt, told):
    answers = answers_within_the_stated_time(*launched_processes(3, step_with(interrupt), timeout=TIMEOUT))
    assert answers[1] is None
    for rank in (0, 2):
        assert answers[rank] == f"{told}; rank {rank} waited in exchange_rows (call 2), in phase 'outer'"


def test_launched_ranks_end_with_the_one_that_keeps_their_store():
    def body(launched):
        if launched.world.rank == 0:
            kill()
        launched.world.barrier()

    answers = answers_within_the_stated_time(*launched_processes(2, body, timeout=TIMEOUT))
    assert answers[0] is None
    assert answers[1].startswith("the store that ranks met through is gone, and with it the process that kept it")


def test_launched_ranks_end_without_one_that_never_arrives():
    release = multiprocessing.get_context("fork").Event()
    answers = answers_within_the_stated_time(
        *launched_processes(2, step_with(release.wait), timeout=TIMEOUT), release.set, held=(1,)
    )
    told = "rank 1 of 2 did not arrive; rank 0 waited in exchange_rows (call 2): "
    assert answers[0].startswith(told)
    assert answers[0].endswith("in phase 'outer'")
    # The one that comes too late finds nobody.
    assert answers[1].startswith("the store that ranks met through is gone")


@pytest.mark.parametrize(
    ("options", "variable", "checked"),
    [
        ({}, None, False),
        ({}, "0", False),
        ({}, "1", True),
        ({"checked": True}, None, True),
        ({"checked": False}, "1", False),
    ],
)
def test_ranks_check_their_calls_when_they_are_asked_to(environment, options, variable, checked):
    if variable is not None:
        environment.setenv("JANUS_CHECKED", variable)

    def body(launched):
        return isinstance(launched.world, Checked), launched.world.sum(torch.ones(1)).item()

    answers = answers_within_the_stated_time(*launched_processes(2, body, **options))
    assert answers == [(checked, 2.0)] * 2


def test_a_rank_that_is_alone_gives_up_joining(environment):
    told = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in told.items():
        environment.setenv(name, value)
    with pytest.raises(RankFailed, match="rank 0 of 2 could not join the others: Timed out"), launch(timeout=1):
        pass
    assert not torch.distributed.is_initialized()


def test_a_timeout_that_leaves_no_time_is_refused(environment):
    with pytest.raises(LaunchError, match="timeout=0 s leaves no rank time to arrive"), launch(timeout=0):
        pass
