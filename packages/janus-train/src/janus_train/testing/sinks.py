"""What every sink of metrics must do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from janus_train.run_log import OpenSinks, RunLog

Point = tuple[str, int, float]
"""Name of a number, the step it belongs to, and its value."""

_STEPS = 12
# From which step a run goes on each time it is started, and how far it gets.
_STARTS = ((0, 7), (4, 9), (9, 9), (0, _STEPS))


def check_metrics_sink(open_sinks: OpenSinks, points: Callable[[], Iterable[Point]], within: float = 0.0) -> None:
    """A training that is killed, and goes on from an earlier step, is told as one that was never stopped.

    Every number of every line of metrics.jsonl is there once, at its step, and no other number.

    Args:
        open_sinks: opens the sink, as at each start of a run.
        points: what the sink has been told, read where it was written.
        within: relative error of the values: that of their storage.
    """
    with TemporaryDirectory() as directory:
        for first, last in _STARTS:
            with RunLog(Path(directory) / "metrics.jsonl", first, open_sinks, _refuse) as log:
                for step in range(first + 1, last + 1):
                    log.write(_train_line(step))
                    if step % 3 == 0:
                        log.write(_validation_line(step))
    wanted = {(name, step): value for name, step, value in _numbers()}
    found = list(points())
    names = [(name, step) for name, step, _ in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    assert not twice, f"told more than once: {twice}"
    assert set(names) == set(wanted), f"missing: {set(wanted) - set(names)}, too many: {set(names) - set(wanted)}"
    for name, step, value in found:
        right = wanted[name, step]
        assert abs(value - right) <= within * abs(right), f"{name} at step {step} is {value}, not {right}"


def _train_line(step: int) -> dict[str, Any]:
    sent = {"gather": 1000 * step} if step % 2 else {}
    return {"kind": "train", "step": step, "loss": 1 / step, "skipped": 0, "bytes_sent": sent, "seconds": 0.5 * step}


def _validation_line(step: int) -> dict[str, Any]:
    tasks = {"a/b": {"forces_mae": 2 / step, "stress_mae": None}}
    return {"kind": "val", "step": step, "loss": float("nan"), "best": True, "watch": {"notice": "-"}, "tasks": tasks}


def _numbers() -> Iterable[Point]:
    for step in range(1, _STEPS + 1):
        yield from (("train/loss", step, 1 / step), ("train/skipped", step, 0), ("train/seconds", step, 0.5 * step))
        if step % 2:
            yield "train/bytes_sent/gather", step, 1000 * step
        if step % 3 == 0:
            yield "val/tasks/a/b/forces_mae", step, 2 / step


def _refuse(text: str) -> None:
    raise AssertionError(text)
