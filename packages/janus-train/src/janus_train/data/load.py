"""The data of a run: what to train on, what to validate on, which tasks there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from janus_train.config import Config, DataConfig
from janus_train.data.frame import LABELS, Frame, fingerprint, with_task_indices
from janus_train.data.read import frame_label_names, read_frames
from janus_train.failure import UserError


@dataclass(frozen=True, eq=False)
class DataSet:
    """Frames of a run.

    Attributes:
        train: what is learnt from.
        val: what is never learnt from, and chooses the best weights.
        tasks: names of the tasks, in the order of their indices.
    """

    train: list[Frame]
    val: list[Frame]
    tasks: tuple[str, ...]

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers in the training frames, ascending."""
        return tuple(sorted({int(z) for frame in self.train for z in np.unique(frame.structure.atomic_numbers)}))


@dataclass(frozen=True)
class Known:
    """What a model knows before it sees the data: validation may have it without training frames.

    Attributes:
        tasks: names, in the order of their indices.
        elements: atomic numbers.
    """

    tasks: tuple[str, ...] = ()
    elements: tuple[int, ...] = ()


def bundled_frames(config: DataConfig | None = None) -> list[Frame]:
    """The data set that comes with this package: synthetic labels of four kinds of matter."""
    with as_file(files("janus_train.data") / "bundled.extxyz.gz") as path:
        return read_frames(path, (config or DataConfig()).keys)


def load_data(config: Config, known: Known | None = None) -> DataSet:
    """Reads and splits the frames a configuration asks for.

    Frames marked "test" are left out. Where no frame is marked "val" and no file is given, whole groups are set aside.
    Tasks that are known come first, whether they have frames or not; the others follow by name.

    Raises:
        UserError: what `read_frames` refuses; no frame to train or validate on; a loss term without a single label; an
            element or a task in the validation frames that training does not have.
    """
    data = config.data
    train = bundled_frames(data) if data.train is None else _read_all(data.train, data)
    if data.val is not None:
        val = _read_all(data.val, data)
        train = [frame for frame in train if frame.split not in ("val", "test")]
    elif any(frame.split == "val" for frame in train):
        val = [frame for frame in train if frame.split == "val"]
        train = [frame for frame in train if frame.split not in ("val", "test")]
    else:
        train, val = _set_aside([f for f in train if f.split != "test"], data.val_fraction, config.run.seed)
    known = known or Known()
    _check(train, val, config, known)
    tasks = (*known.tasks, *sorted({frame.task for frame in train} - set(known.tasks)))
    return DataSet(with_task_indices(train, tasks), with_task_indices(val, tasks), tasks)


def coverage(data: DataSet) -> dict[str, dict[str, Any]]:
    """Per task: numbers of frames, and of training frames that have each label; elements."""
    from ase.data import chemical_symbols

    table: dict[str, dict[str, Any]] = {}
    for task in data.tasks:
        train = [frame for frame in data.train if frame.task == task]
        numbers = {int(z) for frame in train for z in np.unique(frame.structure.atomic_numbers)}
        table[task] = {
            "train": len(train),
            "val": sum(frame.task == task for frame in data.val),
            **{label: sum(frame.has(label) for frame in train) for label in LABELS},
            "elements": [chemical_symbols[z] for z in sorted(numbers)],
        }
    return table


def data_fingerprint(data: DataSet) -> str:
    """A checksum of the training and validation frames."""
    return fingerprint([*data.train, *data.val])


def _read_all(paths: Sequence[Path], config: DataConfig) -> list[Frame]:
    return [frame for path in paths for frame in read_frames(path, config.keys)]


def _set_aside(frames: list[Frame], fraction: float, seed: int) -> tuple[list[Frame], list[Frame]]:
    """Whole groups for validation, chosen at random; a frame without a group is a group of its own."""
    names = [frame.group or f"frame {place}" for place, frame in enumerate(frames)]
    groups = list(dict.fromkeys(names))
    if len(groups) < 2:
        raise UserError(
            "the data have one group (or frame) only, so none can be set aside for validation; give data.val"
        )
    count = min(len(groups) - 1, max(1, round(fraction * len(groups))))
    chosen = set(np.random.default_rng([seed, 1]).permutation(len(groups))[:count].tolist())
    aside = {groups[place] for place in chosen}
    train = [frame for frame, name in zip(frames, names, strict=True) if name not in aside]
    return train, [frame for frame, name in zip(frames, names, strict=True) if name in aside]


def _check(train: list[Frame], val: list[Frame], config: Config, known: Known) -> None:
    if not train or not val:
        which = "train" if not train else "validate"
        raise UserError(f"no frames to {which} on: check the 'split' marks of the frames, data.train and data.val")
    for label in config.loss.weights:
        if not any(frame.has(label) for frame in train):
            key = getattr(config.data.keys, label)
            first = config.data.train[0] if config.data.train else None
            has = ", ".join(frame_label_names(first)) if first else "energy, forces, stress"
            raise UserError(
                f"{train[0].origin}: no key '{key}', nor has any other training frame (has: {has}); set "
                f"data.keys.{label}=NAME if it is there under another name, or loss.{label}=0"
            )
    tasks = {*known.tasks, *(frame.task for frame in train)}
    unseen = Counter(frame.task for frame in val if frame.task not in tasks)
    if unseen:
        raise UserError(f"validation frames of tasks {sorted(unseen)} have no training frames; check data.keys.task")
    elements = {int(z) for frame in train for z in frame.structure.atomic_numbers} | set(known.elements)
    for frame in val:
        new = sorted({int(z) for z in frame.structure.atomic_numbers} - elements)
        if new:
            raise UserError(
                f"{frame.origin} is for validation and has elements (atomic numbers {new}) that no training frame has"
            )
