"""The same work on many parts of a set, by several processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from janus_train.failure import UserError

T = TypeVar("T")


def run_jobs(jobs: Sequence[T], work: Callable[[T], int], workers: int, done: Callable[[int], None]) -> None:
    """Does every job once, in any order; at most two for each worker are in the making.

    Args:
        jobs: what `work` takes.
        work: does one; its result is given to `done`.
        workers: processes; with one, or one job, nothing is started.
        done: told of each.

    Raises:
        UserError: what `work` raises, first come; or a worker that was killed.
    """
    if workers == 1 or len(jobs) <= 1:
        for job in jobs:
            done(work(job))
        return
    # Processes that begin as copies of this one need not import everything again, where the system has such.
    kind = "fork" if "fork" in multiprocessing.get_all_start_methods() and os.name == "posix" else "spawn"
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(kind)) as pool:
        waiting, running = iter(jobs), set()
        try:
            while True:
                for job in waiting:
                    running.add(pool.submit(work, job))
                    if len(running) >= 2 * workers:
                        break
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    done(future.result())
        except BrokenProcessPool as error:
            raise UserError(
                "a worker was killed, most likely for lack of memory; what is done stays: run the same command again, "
                "with fewer --workers"
            ) from error
        finally:
            for future in running:
                future.cancel()
