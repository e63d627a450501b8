"""Ranks as real processes that talk through gloo: forked, so that a run costs a fraction of a second."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from janus_comm.communicator import Communicator
from janus_comm.failure import RankFailed, portable
from janus_comm.process_group import ProcessGroupCommunicator

R = TypeVar("R")


def run_rank_processes(size: int, function: Callable[[Communicator], R], timeout: float = 60.0) -> list[R]:
    """What the function returns (anything that pickles) on each of ``size`` ranks that are processes, in their order.

    The processes are forked: the function may be a closure, and what was imported is there already. Each uses one torch
    thread. ``timeout`` is how many seconds a collective waits for the others. Needs an operating system that can fork.

    Raises the error of the rank that failed first, with its traceback as a note, or RankFailed where a process died or
    did not arrive; the other processes are stopped.
    """
    context = multiprocessing.get_context("fork")
    _warm_up()
    processes: list[ForkProcess] = []
    connections: list[Connection] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(size):
                ours, theirs = context.Pipe()
                connections.append(ours)
                arguments = (rank, size, Path(folder) / "store", function, theirs, list(connections), timeout)
                process = context.Process(target=_rank_main, args=arguments, daemon=True)
                with warnings.catch_warnings():
                    # Python warns of threads at a fork; the children use none of the parent's.
                    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
                    process.start()
                theirs.close()
                processes.append(process)
            results = _collect(processes, connections)
            for process in processes:
                process.join(timeout)
            return results
        finally:
            for process in processes:
                process.kill()
                process.join()
            for connection in connections:
                connection.close()


def _warm_up() -> None:
    # What torch imports and sets up at first use is done once here, rather than in every child.
    torch.testing.assert_close(torch.zeros(1), torch.zeros(1))


def _collect(processes: list[ForkProcess], connections: list[Connection]) -> list[Any]:
    results: dict[int, Any] = {}
    waiting = {connection: rank for rank, connection in enumerate(connections)}
    while waiting:
        failures = _receive(list(waiting), None, waiting, results)
        if failures:
            # What others met may be the cause of this failure, or say what it interrupted.
            failures += _receive(list(waiting), 0.2, waiting, results)
            raise _cause(failures, processes, waiting, results)
    return [results[rank] for rank in range(len(processes))]


def _receive(
    connections: list[Connection], timeout: float | None, waiting: dict[Connection, int], results: dict[int, Any]
) -> list[tuple[int, BaseException | None]]:
    """Take in what ranks send within the time; those that failed and their errors, None where one died."""
    failures: list[tuple[int, BaseException | None]] = []
    for ready in wait(connections, timeout):
        assert isinstance(ready, Connection)
        rank = waiting.pop(ready)
        try:
            failed, value = pickle.loads(ready.recv_bytes())
        except EOFError:
            failures.append((rank, None))
            continue
        if failed:
            failures.append((rank, value))
        else:
            results[rank] = value
    return failures


def _cause(
    failures: list[tuple[int, BaseException | None]],
    processes: list[ForkProcess],
    waiting: dict[Connection, int],
    results: dict[int, Any],
) -> BaseException:
    """A rank's own error before a death, and that before what the others met because of it."""
    for _, error in failures:
        if error is not None and not isinstance(error, RankFailed):
            return error
    dead = [rank for rank, error in failures if error is None]
    if not dead:
        return next(error for _, error in failures if error is not None)
    processes[dead[0]].join()
    message = f"rank {dead[0]} of {len(processes)} died with exit code {processes[dead[0]].exitcode}"
    if all(error is None for _, error in failures):
        failures += _receive(list(waiting), 1.0, waiting, results)
    met = [str(error) for _, error in failures if error is not None]
    return RankFailed("; ".join([message, *met[:1]]))


def _rank_main(
    rank: int,
    size: int,
    store: Path,
    function: Callable[[Communicator], Any],
    parent: Connection,
    inherited: list[Connection],
    timeout: float,
) -> None:
    for connection in inherited:
        connection.close()
    torch.set_num_threads(1)
    world = None
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
        )
        assert dist.group.WORLD is not None
        world = ProcessGroupCommunicator(dist.group.WORLD, timeout)
        world.join()
        answer = pickle.dumps((False, function(world)))
    except BaseException as error:  # noqa: BLE001  whatever it is, the caller gets it
        parent.send_bytes(pickle.dumps((True, portable(error, rank, size))))
        if world is not None:
            world.report(error)
        # Stay until stopped: a peer that lost its connection to this rank would report that instead of the cause.
        parent.poll(None)
        return
    parent.send_bytes(answer)
    world.report(None)
    world.close()
    dist.destroy_process_group()
