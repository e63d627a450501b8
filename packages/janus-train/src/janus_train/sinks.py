"""Who else is told what metrics.jsonl says: TensorBoard, Weights & Biases, or a sink of your own."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from janus_train.config import WatchConfig
from janus_train.failure import UserError

Line = Mapping[str, Any]
"""A line of metrics.jsonl: `kind` ("train" or "val"), `step`, and what was measured."""


class MetricsSink(Protocol):
    """Takes the lines of metrics.jsonl as they are written; on the first rank only."""

    def write(self, line: Line) -> None:
        """One more line."""
        ...

    def close(self) -> None:
        """No more lines; everything is to be where it belongs."""
        ...


class TensorBoardSink:
    """Event files for TensorBoard. They are made anew from the log whenever a run starts, so no step is there twice.

    Args:
        directory: of the event files.
        lines: of the log so far.
    """

    def __init__(self, directory: Path, lines: Sequence[Line]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for old in directory.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer: Any = SummaryWriter(str(directory), flush_secs=10)
        # The time of a point is that of the training, however often it was stopped in between.
        self._began = time.time() - max((line.get("seconds") or 0.0 for line in lines), default=0.0)
        for line in lines:
            self.write(line)

    def write(self, line: Line) -> None:
        """A scalar for every number of the line."""
        for name, value in numbers_of(line).items():
            self._writer.add_scalar(name, value, line["step"], self._began + (line.get("seconds") or 0.0))

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class WandbSink:
    """A run of Weights & Biases, which goes on where a training goes on. Its name is kept in the file `about`.

    Args:
        project: of Weights & Biases.
        directory: of the training.
        config: what is shown as the run's configuration.
        lines: of the log so far, which a run that is new there is told.
        told: the last step of each kind of line that has been told before; later ones are new.
    """

    def __init__(
        self, project: str, directory: Path, config: Mapping[str, Any], lines: Sequence[Line], told: Mapping[str, int]
    ) -> None:
        import wandb

        about = directory / "wandb.json"
        known = json.loads(about.read_text()) if about.exists() else {}
        begun = known.get("id") if known.get("project") == project else None
        self._run: Any = wandb.init(
            project=project, dir=str(directory), id=begun, resume="allow", name=directory.resolve().name, config=config
        )
        self._told = dict(told) if begun else {}
        about.write_text(json.dumps({"project": project, "id": self._run.id}) + "\n")
        for line in lines if begun is None else ():
            self.write(line)

    def write(self, line: Line) -> None:
        """Every number of the line at its step, unless that has been told before."""
        if line["step"] > self._told.get(line["kind"], -1):
            self._run.log(numbers_of(line), step=line["step"])

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()


def check_sinks(watch: WatchConfig) -> None:
    """Raises where a package is missing that the configuration asks for.

    Raises:
        UserError: the message says how to install it.
    """
    for asked, setting, package in (
        (watch.tensorboard, "watch.tensorboard", "tensorboard"),
        (watch.wandb is not None, "watch.wandb", "wandb"),
    ):
        if asked and find_spec(package) is None:
            raise UserError(
                f"{setting} needs the package {package}: pip install 'janus-train[{package}]', or leave {setting} out"
            )


def open_sinks(
    watch: WatchConfig, directory: Path, config: Mapping[str, Any], lines: Sequence[Line], told: Mapping[str, int]
) -> list[MetricsSink]:
    """The sinks that a configuration asks for.

    Args:
        watch: which ones.
        directory: of the run.
        config: the whole configuration, for those that show it.
        lines: of the log, up to the step that the run goes on from.
        told: the last step of each kind of line that was in the log when it was last written to.
    """
    sinks: list[MetricsSink] = []
    if watch.tensorboard:
        sinks.append(TensorBoardSink(directory / "tensorboard", lines))
    if watch.wandb is not None:
        sinks.append(WandbSink(watch.wandb, directory, config, lines, told))
    return sinks


def last_steps(lines: Iterable[Line]) -> dict[str, int]:
    """The last step of each kind of line."""
    steps: dict[str, int] = {}
    for line in lines:
        steps[line["kind"]] = max(line["step"], steps.get(line["kind"], -1))
    return steps


def numbers_of(line: Line) -> dict[str, float]:
    """Every finite number of a line by its path, as `val/tasks/metals/forces_mae`; without kind and step."""
    found: dict[str, float] = {}
    rest: list[tuple[str, Any]] = [(str(line["kind"]), {k: v for k, v in line.items() if k not in ("kind", "step")})]
    while rest:
        path, value = rest.pop()
        if isinstance(value, Mapping):
            rest += [(f"{path}/{key}", inner) for key, inner in value.items()]
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            found[path] = value
    return found
