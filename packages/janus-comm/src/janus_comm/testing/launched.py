"""Ranks that are started as a launcher starts them: by their environment alone."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

import torch

_ENDS_WITHIN = 60.0
"""Seconds from the end of one rank to that of all others."""


def run_launched_ranks(
    size: int, function: Callable[[int], Any], environment: Mapping[str, str] | None = None
) -> list[str | None]:
    """What becomes of the function on each rank: "done", or the error's type and message; None where it was killed.

    The processes are forked and find their places in the environment, as under torchrun; :func:`janus_comm.launch`
    works in them. Each uses one torch thread.

    Raises RuntimeError when a rank goes on for a minute after another one has ended.
    """
    context = multiprocessing.get_context("fork")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def main(rank: int, answer: Any) -> None:
        torch.set_num_threads(1)
        os.environ.update(
            environment or {}, WORLD_SIZE=str(size), RANK=str(rank), LOCAL_RANK=str(rank),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
        )  # fmt: skip
        try:
            function(rank)
            answer.send("done")
        except Exception as error:  # noqa: BLE001  whoever started the ranks looks at it
            answer.send(f"{type(error).__name__}: {error}")

    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    processes = [context.Process(target=main, args=(rank, pipes[rank][1]), daemon=True) for rank in range(size)]
    for process in processes:
        process.start()
    try:
        multiprocessing.connection.wait([process.sentinel for process in processes], 300)
        for rank, process in enumerate(processes):
            process.join(_ENDS_WITHIN)
            if process.exitcode is None:
                raise RuntimeError(f"rank {rank} goes on though another one has ended")
        return [ours.recv() if ours.poll() else None for ours, _ in pipes]
    finally:
        for process in processes:
            process.kill()
