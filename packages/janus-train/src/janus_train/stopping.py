"""Signals that ask a run to stop, and how a launcher is told that it did."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

REQUEUE_EXIT_CODE = 75
"""What a run that was asked to stop ends with: it can be started again, and goes on (EX_TEMPFAIL of sysexits.h)."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(Exception):
    """The run was asked to stop; it has written a checkpoint and goes on from there when it is resumed."""


class StopSignals:
    """Notes SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) instead of ending the process by them. Used as a context.

    Ctrl-C a second time ends the process at once. Signals go to the main thread; used in another one it notes nothing.

    Attributes:
        name: of the signal that came; None before.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave before

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.name == "SIGINT":
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
