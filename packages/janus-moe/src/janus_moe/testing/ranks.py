"""Ranks as threads that hand each other tensors, history and all: their graphs are one, and one process differentiates
it. The adjoint of an exchange is then autograd's own, so this is an oracle for exchanges that bring one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:  # it would import numba
    from janus_moe.expert_parallel import Exchange

T = TypeVar("T")


def simulate_ranks(ranks: int, function: Callable[[int, Exchange], T]) -> list[T]:
    """What `function(rank, exchange)` gives on every rank, all of them run side by side.

    Derivatives are to be taken of the results of all ranks together, after this has returned.

    Raises:
        The first error of any rank, in the order of the ranks. Ranks that wait for one that failed are freed.
    """
    barrier = threading.Barrier(ranks)
    offered: list[Sequence[Tensor]] = [()] * ranks
    results: list[T | BaseException] = [RuntimeError("did not run")] * ranks

    def run(rank: int) -> None:
        def exchange(rows: Tensor, send_counts: Sequence[int], receive_counts: Sequence[int]) -> Tensor:
            offered[rank] = rows.split(list(send_counts))
            barrier.wait()
            received = [parts[rank] for parts in offered]
            barrier.wait()
            found = [len(part) for part in received]
            if found != list(receive_counts):
                raise ValueError(f"rank {rank} expects {list(receive_counts)} rows, but {found} were sent")
            return torch.cat(received)

        try:
            results[rank] = function(rank, exchange)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            results[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(failed, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [result for result in results if not isinstance(result, BaseException)]
