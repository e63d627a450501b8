"""Why a collective failed: what ranks leave in the store they met through, and how it is read.

A backend knows that a connection broke or a wait was too long, not why. So each rank leaves a word when it ends by an
error, when it leaves, and when a collective of its own fails. A rank whose collective failed reads what the others
left, and looks whether the processes of those on its own host are still there. Nothing of it costs anything while all
is well.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from janus_comm.failure import describe, phases_of

GRACE = 5.0
"""Seconds that a rank whose collective failed waits, at most, for the others to say why."""

_LOOK_AGAIN = 0.05


class LastWords:
    """The words of one rank, of ``size`` in the job, and those it can read of the others.

    Waits ``grace`` seconds at most for words that are missing. Every rank makes one when it joins.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, grace: float = GRACE):
        self._store = store
        self._rank = rank
        self._size = size
        self._grace = grace
        self._store.set(f"janus_comm/process/{rank}", json.dumps([_host(), os.getpid()]))

    def failed(self, error: BaseException) -> None:
        """This rank ends by an error of its own."""
        self._say("failed", f"failed with {describe(error)}{phases_of(error)}")

    def left(self) -> None:
        """This rank ends without one."""
        self._say("left", "has left")

    def keep_readable(self) -> None:
        """Stay until all others have read what they need or are gone: for a rank that takes the store along."""
        until = time.monotonic() + self._grace
        try:
            while not all(self._needs_nothing(rank) for rank in range(self._size)) and time.monotonic() < until:
                time.sleep(_LOOK_AGAIN)
        except RuntimeError:
            return  # It is gone already.

    def explain(self, members: Sequence[int], call: str, error: BaseException) -> str:
        """Which of the members (ranks of the job) made this rank's call fail, and how.

        In this order: one that failed, one whose process is gone, one that left, one that says nothing.
        """
        self._say("stopped", f"stopped in {call}")
        others = [member for member in members if member != self._rank]
        until = time.monotonic() + self._grace
        try:
            while True:
                words = {other: self._heard(other) for other in others}
                silent = [other for other in others if words[other] is None]
                cause = self._cause(words, [other for other in silent if self._is_gone(other)])
                remaining = until - time.monotonic()
                if cause is not None or not silent or remaining <= 0:
                    break
                time.sleep(_LOOK_AGAIN)  # rather than in the store, which complains of each wait that was too long
            self._store.set(f"janus_comm/read/{self._rank}", "")
        except RuntimeError:
            cause = "the store that ranks met through is gone, and with it the process that kept it (often rank 0)"
        waited = f"rank {self._rank} waited in {call}"
        if cause is not None:
            return f"{cause}; {waited}"
        reason = str(error).strip().split("\n")[0]
        if silent:
            names = ", ".join(str(other) for other in silent)
            return f"rank {names} of {self._size} did not arrive; {waited}: {reason}"
        told = "; ".join(f"rank {other} {word[1]}" for other, word in words.items() if word is not None)
        return f"{waited}, and all others stopped too: {told}; {reason}"

    def _cause(self, words: dict[int, tuple[str, str] | None], gone: Sequence[int]) -> str | None:
        told = [(other, *word) for other, word in words.items() if word is not None]
        for wanted in ("failed", "gone", "left"):
            if wanted == "gone" and gone:
                return f"rank {gone[0]} of {self._size} died without a word"
            for other, kind, text in told:
                if kind == wanted:
                    return f"rank {other} of {self._size} {text}"
        return None

    def _say(self, kind: str, text: str) -> None:
        try:
            self._store.set(f"janus_comm/word/{self._rank}", json.dumps([kind, text]))
        except RuntimeError:
            return  # The store is gone, and whoever would read this with it.

    def _heard(self, rank: int) -> tuple[str, str] | None:
        if not self._store.check([f"janus_comm/word/{rank}"]):
            return None
        kind, text = json.loads(self._store.get(f"janus_comm/word/{rank}"))
        return kind, text

    def _needs_nothing(self, rank: int) -> bool:
        word = self._heard(rank)
        ended = word is not None and word[0] != "stopped"
        return rank == self._rank or ended or self._store.check([f"janus_comm/read/{rank}"]) or self._is_gone(rank)

    def _is_gone(self, rank: int) -> bool:
        if not self._store.check([f"janus_comm/process/{rank}"]):
            return False
        host, process = json.loads(self._store.get(f"janus_comm/process/{rank}"))
        return host == _host() and not _is_running(process)


def _host() -> str:
    """What tells apart the places where process numbers mean something."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _is_running(process: int) -> bool:
    try:
        # The state follows the name, which is in brackets and may hold anything.
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        if Path("/proc/self/stat").exists():
            return False
        return _takes_signals(process)
    return state not in "ZX"  # ended, but not yet collected by whoever started it


def _takes_signals(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
