"""The files of a run directory, each of which may be missing, empty or cut short."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from janus_train.report.quantities import LARGEST, as_number

FloatArray = npt.NDArray[np.float64]

_HOLDS = {
    "metrics.jsonl": "the learning curves and the speed",
    "evaluation.json": "the final errors and the errors by element",
    "parity.npz": "labels beside predictions",
    "experts.json": "what the experts do",
    "data.json": "what the run learnt from",
    "physics.json": "what the model says of prototypes",
    "config.yaml": "the configuration",
    "environment.json": "the versions of the software",
}


class ExpertLayer(NamedTuple):
    """A layer of experts: how much each counts for each element, weights [symbols, experts], its rows, load, and what
    is said of them all.
    """

    name: str
    symbols: list[str]
    weights: FloatArray
    load: FloatArray
    statistics: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """What a run directory says.

    Attributes:
        name: of the directory.
        train: a line a logged step, in order.
        val: a line a validation, in order.
        evaluation: errors of the finished model, by task and element; empty if there are none.
        parity: labels and predictions [n, 2], by property and task.
        layers: the expert layers.
        config: the text of the configuration.
        environment: versions and the machine.
        data: frames and labels by task.
        physics: the physics card, which only `evaluate --physics` writes; empty without one.
        remarks: what is missing or could not be read, a sentence each.
    """

    name: str
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    evaluation: dict[str, Any]
    parity: dict[tuple[str, str], FloatArray]
    layers: list[ExpertLayer]
    config: str
    environment: dict[str, Any]
    data: dict[str, Any]
    physics: dict[str, Any]
    remarks: list[str]

    @property
    def errors(self) -> dict[str, dict[str, Any]]:
        """The newest errors by task: of the finished model, else of the last validation."""
        found = inner_mappings(self.evaluation.get("tasks"))
        return found or (inner_mappings(self.val[-1].get("tasks")) if self.val else {})

    @property
    def start(self) -> dict[str, dict[str, Any]]:
        """The errors by task of the weights that the run started from, where they were validated before any step."""
        return inner_mappings(self.val[0].get("tasks")) if self.val and as_number(self.val[0]["step"]) == 0 else {}

    @property
    def tasks(self) -> list[str]:
        """All tasks that any file knows, in the order of the errors."""
        seen = dict.fromkeys(self.errors)
        for line in self.val:
            seen |= dict.fromkeys(inner_mappings(line.get("tasks")))
        seen |= dict.fromkeys(task for _, task in self.parity)
        return list(seen | dict.fromkeys(self.coverage))

    @property
    def coverage(self) -> dict[str, dict[str, Any]]:
        """Numbers of frames and labels by task."""
        return inner_mappings(self.data.get("tasks"))

    @property
    def groups(self) -> dict[str, dict[str, Any]]:
        """Errors by task/group."""
        return inner_mappings(self.evaluation.get("groups"))

    @property
    def elements(self) -> dict[str, dict[str, Any]]:
        """Errors by symbol."""
        return inner_mappings(self.evaluation.get("elements"))


def read_run(directory: Path) -> Run:
    """All that a run directory says, and remarks about what it does not say."""
    remarks: list[str] = []
    train, val = _read_metrics(directory, remarks)
    return Run(
        name=directory.resolve().name,
        train=train,
        val=val,
        evaluation=_read_json(directory, "evaluation.json", remarks),
        parity=_read_parity(directory, remarks),
        layers=_read_layers(directory, remarks),
        config=_read_text(directory, "config.yaml", remarks),
        environment=_read_json(directory, "environment.json", remarks),
        data=_read_json(directory, "data.json", remarks),
        physics=_read_json(directory, "physics.json", remarks) if (directory / "physics.json").exists() else {},
        remarks=remarks,
    )


def parse_metrics(text: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Lines of training, lines of validation, and how many lines are neither.

    A last line that was cut short is not counted: that is what a killed process leaves.
    """
    train: list[dict[str, Any]] = []
    val: list[dict[str, Any]] = []
    unreadable = 0
    lines = text.split("\n")
    for place, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError:
            unreadable += place < len(lines) - 1
            continue
        kind = content.get("kind") if isinstance(content, dict) else None
        if kind not in ("train", "val") or np.isnan(as_number(content.get("step"))):
            unreadable += 1
        else:
            (train if kind == "train" else val).append(content)
    return train, val, unreadable


def column(lines: Iterable[Mapping[str, Any]], *keys: str) -> FloatArray:
    """One number a line, found by going through these keys in turn; NaN where there is none."""
    numbers = []
    for line in lines:
        value: Any = line
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        numbers.append(as_number(value))
    return np.array(numbers, dtype=np.float64)


def median_of(values: FloatArray) -> float:
    """The median of what is finite; NaN where nothing is."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def _read_metrics(directory: Path, remarks: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    train, val, unreadable = parse_metrics(_read_text(directory, "metrics.jsonl", remarks))
    if unreadable:
        remarks.append(f"metrics.jsonl: {unreadable} line(s) could not be read and are left out")
    return train, val


def _read_text(directory: Path, name: str, remarks: list[str]) -> str:
    try:
        text = (directory / name).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        remarks.append(f"{name} is not there: it holds {_HOLDS[name]}")
        return ""
    except OSError as error:
        remarks.append(f"{name} could not be read ({error.strerror}): it holds {_HOLDS[name]}")
        return ""
    if not text.strip():
        remarks.append(f"{name} is empty: it should hold {_HOLDS[name]}")
    return text


def _read_json(directory: Path, name: str, remarks: list[str]) -> dict[str, Any]:
    text = _read_text(directory, name, remarks)
    if not text.strip():
        return {}
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if isinstance(content, dict):
        return content
    remarks.append(f"{name} could not be read (no JSON object, or cut short): it should hold {_HOLDS[name]}")
    return {}


def _read_parity(directory: Path, remarks: list[str]) -> dict[tuple[str, str], FloatArray]:
    path = directory / "parity.npz"
    if not path.exists():
        remarks.append(f"parity.npz is not there: it holds {_HOLDS['parity.npz']}")
        return {}
    found = {}
    try:
        # numpy leaves a file that it opened itself open where it cannot read it.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for name in arrays.files:
                label, _, task = name.partition("/")
                pairs = np.asarray(arrays[name], dtype=np.float64)
                if pairs.ndim != 2 or pairs.shape[1] != 2:
                    remarks.append(f"parity.npz: {name} has shape {pairs.shape}, not [n, 2]; it is left out")
                    continue
                found[label, task] = pairs[(np.abs(pairs) <= LARGEST).all(axis=1)]
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error):
        remarks.append(f"parity.npz could not be read to its end: it should hold {_HOLDS['parity.npz']}")
    return found


def _read_layers(directory: Path, remarks: list[str]) -> list[ExpertLayer]:
    content = _read_json(directory, "experts.json", remarks).get("layers")
    layers = []
    for place, entry in enumerate(content if isinstance(content, list) else []):
        try:
            weights = np.array(entry["weights"], dtype=np.float64)
            load = np.array(entry["load"], dtype=np.float64)
            symbols, said = [str(symbol) for symbol in entry["symbols"]], entry.get("statistics")
            layer = ExpertLayer(str(entry["name"]), symbols, weights, load, said if isinstance(said, dict) else {})
        except (TypeError, KeyError, ValueError):
            remarks.append(f"experts.json: layer {place} has no name, symbols, weights and load; it is left out")
            continue
        if weights.shape != (len(layer.symbols), len(load)) or not weights.size:
            remarks.append(
                f"experts.json: layer {place} has {len(layer.symbols)} symbols, {len(load)} loads and weights of shape "
                f"{weights.shape}; it is left out"
            )
            continue
        layers.append(layer._replace(weights=np.nan_to_num(weights), load=np.nan_to_num(load)))
    return layers


def inner_mappings(value: Any) -> dict[str, dict[str, Any]]:
    """The entries of a mapping that are mappings; none if it is none."""
    if not isinstance(value, dict):
        return {}
    return {key: inner for key, inner in value.items() if isinstance(inner, dict)}
