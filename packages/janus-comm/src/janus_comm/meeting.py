"""How ranks meet in a store that may remember ranks of an earlier start.

A launcher that starts ranks again keeps its store, with the addresses of those that are dead. A rank that reads one of
these connects to nobody. So the ranks of a start first agree on a name that no other start has, under which they then
write everything else. Numbers of starts would not do: hosts that join later count differently.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

_LOOK_AGAIN = 0.02


def meet(store: dist.Store, rank: int, size: int, timeout: float) -> dist.Store:
    """The part of the store that belongs to the ranks of this start alone. Every rank calls it.

    Each rank leaves a token of its own. Rank 0 answers every token it finds, those of the dead as well, with the name
    of the start, until each rank has said under that name that it is there.

    Raises RuntimeError when ranks are missing after so many seconds.
    """
    if rank == 0:
        start = uuid.uuid4().hex
        _answer(store, start, range(1, size), timeout)
    else:
        token = uuid.uuid4().hex
        store.set(f"janus_comm/token/{rank}", token)
        answer = f"janus_comm/answer/{token}"
        store.wait([answer], timedelta(seconds=timeout))
        start = store.get(answer).decode()
        store.set(f"janus_comm/{start}/here/{rank}", "")
    return dist.PrefixStore(f"janus_comm/{start}", store)  # type: ignore[attr-defined]


def _answer(store: dist.Store, start: str, others: Sequence[int], timeout: float) -> None:
    until, answered = time.monotonic() + timeout, dict.fromkeys(others, b"")
    missing = list(others)
    while missing:
        for rank in missing:
            if store.check([f"janus_comm/token/{rank}"]):
                token = store.get(f"janus_comm/token/{rank}")
                if token != answered[rank]:
                    store.set(f"janus_comm/answer/{token.decode()}", start)
                    answered[rank] = token
        missing = [rank for rank in missing if not store.check([f"janus_comm/{start}/here/{rank}"])]
        if missing and time.monotonic() > until:
            raise RuntimeError(f"Timed out after {timeout:g} s without rank {', '.join(map(str, missing))}")
        if missing:
            time.sleep(_LOOK_AGAIN)
