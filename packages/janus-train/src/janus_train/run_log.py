"""What a run writes down as it goes on: metrics.jsonl, and whoever else is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from janus_train.metrics import MetricsLog, plain_line
from janus_train.sinks import MetricsSink, last_steps

OpenSinks = Callable[[Sequence[Mapping[str, Any]], Mapping[str, int]], Sequence[MetricsSink]]
"""Opens sinks, given the lines of the log so far, and the last step of each kind that was ever in it."""


class RunLog:
    """The log of a run, and sinks that are fed exactly its lines. Used as a context, on the first rank.

    Lines after `step` are forgotten: they will be written again.

    Args:
        path: of metrics.jsonl.
        step: that the run goes on from.
        open_sinks: opens the sinks.
        say: told what could not be written; nothing that happens here ends a training.
    """

    def __init__(self, path: Path, step: int, open_sinks: OpenSinks, say: Callable[[str], None]) -> None:
        self._log, self._say = MetricsLog(path), say
        told = last_steps(self._log.read())
        self._log.forget_after(step)
        self._sinks = list(open_sinks(self._log.read(), told))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in tuple(self._sinks):
            self._tell(sink, sink.close)

    def write(self, line: Mapping[str, Any]) -> None:
        """One more line. Numbers that JSON does not know (NaN, infinity) become null."""
        plain = plain_line(line)
        try:
            self._log.write(plain)
        except OSError as error:
            self._say(
                f"warning: {self._log.path} cannot be written ({error.strerror}); its lines are kept until it can be"
            )
        for sink in tuple(self._sinks):
            self._tell(sink, partial(sink.write, plain))

    def _tell(self, sink: MetricsSink, tell: Callable[[], None]) -> None:
        try:
            tell()
        except Exception as error:  # noqa: BLE001  whatever befalls somebody else's service, the training goes on
            self._sinks.remove(sink)
            self._say(f"warning: {type(sink).__name__} gets no more lines ({type(error).__name__}: {error})")
