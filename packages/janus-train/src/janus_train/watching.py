"""Which validation is the best one, and whether there have been enough without a better one.

Every rank judges the same numbers, and what it makes of them is in the checkpoint: all ranks agree, and a run that goes
on from a checkpoint decides as one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from janus_train.config import LossConfig, WatchConfig
from janus_train.data.frame import Frame
from janus_train.evaluate import Evaluation
from janus_train.failure import UserError
from janus_train.state import Progress


def check_watched(metric: str, frames: Iterable[Frame], weights: Mapping[str, float]) -> None:
    """Raises where no validation on these frames can have a value of `watch.metric`.

    Raises:
        UserError: it is of a label or a task that the frames lack, or of what the model is not asked for.
    """
    if metric == "loss":
        return
    task, _, error = metric.rpartition("/")
    label = error.rpartition("_")[0]
    if label not in weights:
        raise UserError(
            f"watch.metric={metric}, but loss.{label} is 0, and what is not learnt is not validated; set loss.{label} "
            "above 0, or watch another error"
        )
    tasks = sorted({frame.task for frame in frames if _is_judged(frame, label)})
    if not tasks or (task and task not in tasks):
        raise UserError(
            f"watch.metric={metric}, but no validation frame{f' of task {task}' if task else ''} has {label}; tasks "
            f"that have: {', '.join(tasks) or 'none'}"
        )


def watched_value(metric: str, found: Evaluation, loss_config: LossConfig) -> float:
    """What a validation is judged by; the lower, the better. NaN where that, or the loss, is not finite."""
    loss = found.loss(loss_config)
    if metric == "loss" or not math.isfinite(loss):
        return loss if math.isfinite(loss) else math.nan
    wanted, _, error = metric.rpartition("/")
    values = [
        errors[error] for task, errors in found.tasks.items() if wanted in ("", task) and errors[error] is not None
    ]
    value = sum(values) / len(values) if values else math.nan
    return value if math.isfinite(value) else math.nan


def note_validation(progress: Progress, metric: str, value: float, min_delta: float) -> bool:
    """Notes a validation in the progress; returns whether its model is better than that of any before.

    A value that is not finite is better than nothing. Where another metric was watched before, all begins anew.
    """
    if progress.watched != metric:
        progress.watched, progress.best_value, progress.better_value, progress.no_better = metric, None, None, 0
    finite = math.isfinite(value)
    if finite and (progress.better_value is None or value < progress.better_value - min_delta):
        progress.better_value, progress.better_step, progress.no_better = value, progress.step, 0
    else:
        progress.no_better += 1
    return finite and (progress.best_value is None or value < progress.best_value)


def has_ended_early(progress: Progress, watch: WatchConfig) -> bool:
    """Whether as many validations in a row as `watch.patience` were none for the better."""
    return watch.patience is not None and progress.no_better >= watch.patience


def notice_of(progress: Progress, watch: WatchConfig) -> str | None:
    """What the person should know of the validations so far; None where the last ones were for the better."""
    if progress.no_better < watch.plateau and not has_ended_early(progress, watch):
        return None
    often = f"in {progress.no_better} validations" if progress.no_better > 1 else "in a validation"
    since = f"has not improved since step {progress.better_step}, {often}"
    if progress.better_value is None:
        since = f"was never finite, {often}"
    text = f"validation {progress.watched.replace('_', ' ')} {since}"
    return f"{text}: the run ends here (watch.patience={watch.patience})" if has_ended_early(progress, watch) else text


def _is_judged(frame: Frame, label: str) -> bool:
    return frame.has(label) and (label != "stress" or frame.structure.has_volume)
