"""Ranks as threads of one process: milliseconds a run, and errors instead of hangs.

Calls are matched by their number within a group. Each carries its operation, dtype, shape and counts: when ranks call
different things, all of them raise instead of mixing data. So they do when one fails, or returns while others wait.
Tensors are on the CPU, where a backward pass runs in the thread that asks for it.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from janus_comm.checked import kind_of, unmatched_counts, who_does_what
from janus_comm.communicator import (
    Communicator,
    require_addable,
    require_all_rows,
    require_exchange,
    require_own_rows,
    require_plain,
    sum_in_rank_order,
)
from janus_comm.failure import RankFailed, describe

T = TypeVar("T")
R = TypeVar("R")


def run_rank_threads(size: int, function: Callable[[Communicator], R], timeout: float = 60.0) -> list[R]:
    """What the function returns on each of ``size`` ranks that run as threads, in their order.

    ``timeout`` is how many seconds a rank waits for the others before everyone gives up.

    Raises the error of the rank that failed first, with a note of which it was; the other ranks meet RankFailed. The
    threads share the process's random generators: seed generators of your own.
    """
    world, everyone = _World(size, timeout), _Group()
    results: dict[int, R] = {}

    def run(rank: int) -> None:
        try:
            results[rank] = function(_ThreadCommunicator(world, tuple(range(size)), everyone, rank))
        except BaseException as error:  # noqa: BLE001  whatever it is, the caller gets it
            world.fail(rank, error)
        else:
            world.leave(rank)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True, name=f"rank {rank}") for rank in range(size)]
    for thread in threads:
        thread.start()
    for rank, thread in enumerate(threads):
        while thread.is_alive() and world.failure is None:
            thread.join(0.05)
        thread.join(timeout)
        if thread.is_alive():
            raise RankFailed(f"rank {rank} of {size} did not stop after {world.failure}")
    if world.cause is not None:
        raise world.cause
    return [results[rank] for rank in range(size)]


class _World:
    """What all rank threads share: one lock, the first failure, and who has returned."""

    def __init__(self, size: int, timeout: float):
        self.size = size
        self.timeout = timeout
        self.changed = threading.Condition()
        self.departed: set[int] = set()
        self.failure: str | None = None
        self.cause: BaseException | None = None

    def fail(self, rank: int, error: BaseException) -> None:
        with self.changed:
            if self.cause is None:
                error.add_note(f"raised on rank {rank} of {self.size}")
                self.cause = error
            if self.failure is None:
                self.failure = f"rank {rank} of {self.size} failed with {describe(error)}"
            self.changed.notify_all()

    def leave(self, rank: int) -> None:
        with self.changed:
            self.departed.add(rank)
            self.changed.notify_all()


class _Round:
    """One collective call of one group: what each rank brought."""

    def __init__(self, index: int):
        self.index = index
        self.brought: dict[int, tuple[str, Any]] = {}
        self.complete = False


class _Group:
    """The present round of a group of ranks; one object shared by its members."""

    def __init__(self) -> None:
        self.round = _Round(0)


class _ThreadCommunicator:
    def __init__(self, world: _World, members: tuple[int, ...], group: _Group, rank: int):
        self._world = world
        self._members = members
        self._group = group
        self.rank = rank
        self.size = len(members)

    def sum(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        require_plain("sum", tensor)
        require_addable("sum", tensor)
        return sum_in_rank_order(self._meet(f"sum of {kind_of(tensor, 0)}", _copy(tensor)))

    def gather_rows(
        self, rows: Shaped[Tensor, "own *features"], counts: Sequence[int]
    ) -> Shaped[Tensor, "all *features"]:
        require_own_rows("gather_rows", rows, counts, self.rank, self.size)
        return torch.cat(self._meet(f"gather_rows of {kind_of(rows, 1)} by {list(counts)}", _copy(rows)))

    def reduce_scatter_rows(
        self, rows: Shaped[Tensor, "all *features"], counts: Sequence[int]
    ) -> Shaped[Tensor, "own *features"]:
        require_all_rows("reduce_scatter_rows", rows, counts, self.size)
        require_addable("reduce_scatter_rows", rows)
        everyone = self._meet(f"reduce_scatter_rows of {kind_of(rows, 1)} by {list(counts)}", _copy(rows))
        start = sum(counts[: self.rank])
        return sum_in_rank_order([theirs[start : start + counts[self.rank]] for theirs in everyone])

    def exchange_rows(
        self, rows: Shaped[Tensor, "sent *features"], send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Shaped[Tensor, "received *features"]:
        require_exchange("exchange_rows", rows, send_counts, receive_counts, self.rank, self.size)
        brought = (_copy(rows), list(send_counts), list(receive_counts))
        everyone = self._meet(f"exchange_rows of {kind_of(rows, 1)}", brought, _exchange_mismatch)
        return torch.cat([theirs.split(sent)[self.rank] for theirs, sent, _ in everyone])

    def start_gather_rows(
        self, rows: Shaped[Tensor, "own *features"], counts: Sequence[int]
    ) -> Callable[[], Shaped[Tensor, "all *features"]]:
        result = self.gather_rows(rows, counts)
        return lambda: result

    def start_reduce_scatter_rows(
        self, rows: Shaped[Tensor, "all *features"], counts: Sequence[int]
    ) -> Callable[[], Shaped[Tensor, "own *features"]]:
        result = self.reduce_scatter_rows(rows, counts)
        return lambda: result

    def gather_object(self, value: T) -> list[T]:
        # Pickled, as between processes: what cannot travel there fails here, and nothing is shared by accident.
        return [pickle.loads(theirs) for theirs in self._meet("gather_object", pickle.dumps(value))]

    def barrier(self) -> None:
        self._meet("barrier", None)

    def split(self, color: int) -> Communicator:
        # Every rank brings a group object of its own; the members of a colour take that of their first.
        colors = self._meet("split", (color, _Group()))
        chosen = [rank for rank, (theirs, _) in enumerate(colors) if theirs == color]
        members = tuple(self._members[rank] for rank in chosen)
        return _ThreadCommunicator(self._world, members, colors[chosen[0]][1], chosen.index(self.rank))

    def _meet(self, label: str, value: T, mismatch: Callable[[list[T]], str | None] = lambda _: None) -> list[T]:
        """What every member brought to this call, in their order."""
        world = self._world
        with world.changed:
            self._raise_failure()
            meeting = self._group.round
            meeting.brought[self.rank] = (label, value)
            if len(meeting.brought) == self.size:
                self._close(meeting, mismatch)
            while not meeting.complete:
                self._raise_failure()
                gone = [rank for rank in self._missing(meeting) if self._members[rank] in world.departed]
                if gone:
                    self._give_up(f"rank {gone[0]} has returned, but rank {self.rank} waits for it in {label}")
                if not world.changed.wait(world.timeout):
                    missing = ", ".join(str(rank) for rank in self._missing(meeting))
                    self._give_up(f"rank {self.rank} waited {world.timeout} s in {label} for rank {missing}")
            return [meeting.brought[rank][1] for rank in range(self.size)]

    def _close(self, meeting: _Round, mismatch: Callable[[list[Any]], str | None]) -> None:
        labels = [meeting.brought[rank][0] for rank in range(self.size)]
        if len(set(labels)) > 1:
            told = who_does_what([f"calls {label}" for label in labels])
            self._give_up(f"ranks disagree on collective {meeting.index}: {told}")
        wrong = mismatch([meeting.brought[rank][1] for rank in range(self.size)])
        if wrong is not None:
            self._give_up(f"ranks disagree on collective {meeting.index}: {wrong}")
        meeting.complete = True
        self._group.round = _Round(meeting.index + 1)
        self._world.changed.notify_all()

    def _missing(self, meeting: _Round) -> list[int]:
        return [rank for rank in range(self.size) if rank not in meeting.brought]

    def _raise_failure(self) -> None:
        if self._world.failure is not None:
            raise RankFailed(self._world.failure)

    def _give_up(self, failure: str) -> None:
        if self._world.failure is None:
            self._world.failure = failure
        self._world.changed.notify_all()
        self._raise_failure()


def _exchange_mismatch(everyone: list[tuple[Tensor, list[int], list[int]]]) -> str | None:
    return unmatched_counts([(sent, received) for _, sent, received in everyone])


def _copy(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cpu":
        raise ValueError(f"rank threads hold tensors on the CPU, not on {tensor.device}; use rank processes")
    return tensor.detach().clone()
