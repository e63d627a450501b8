"""The data of a run: what to train on, what to validate on, which tasks there are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from janus_train.config import Config, DataConfig, SourceConfig
from janus_train.data.batching import Draws
from janus_train.data.chosen import Chosen, ChosenFrames, Shelf, TaskSummary, choose, column_parts, summary_of
from janus_train.data.columns import columns_of
from janus_train.data.files import files_of, is_store
from janus_train.data.frame import Frame, fingerprint, with_task_indices
from janus_train.data.read import frame_label_names, frames_of_file, read_frames
from janus_train.data.split import marked, set_aside
from janus_train.data.store import Store
from janus_train.failure import UserError

_AT_A_TIME = 1 << 20


@dataclass(frozen=True, eq=False)
class DataSet:
    """Frames of a run. Where they come from stores they are read when they are asked for.

    Attributes:
        train: what is learnt from.
        val: what is never learnt from, and chooses the best weights.
        tasks: names of the tasks, in the order of their indices.
        draws: training frames in their order, so many at a time, and how often each is drawn in an epoch.
    """

    train: Sequence[Frame]
    val: Sequence[Frame]
    tasks: tuple[str, ...]
    draws: tuple[Draws, ...] = ()

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers in the training frames, ascending."""
        return tuple(sorted(_elements(self.train)))

    def has(self, label: str) -> bool:
        """Whether any training frame has "energy", "forces", "stress" or "magmoms"."""
        return any(task.labels[label] for task in summary_of(self.train).values())


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
    data, known = config.data, known or Known()
    stores: dict[Path, Store] = {}
    shelves = [_in_memory(bundled_frames(data))] if data.train is None else _shelves(data.train, data, stores)
    if data.val is not None:
        aside = _shelves(data.val, data, stores)
        val = choose(aside, [np.ones(len(shelf.columns), dtype=bool) for shelf in aside])
        train = choose(shelves, [~marked(shelf.columns, "val", "test") for shelf in shelves])
    else:
        train, val = _split(shelves, config)
    if not _count(train) or not _count(val):
        which = "train" if not _count(train) else "validate"
        raise UserError(f"no frames to {which} on: check the 'split' marks of the frames, data.train and data.val")
    tasks = (*known.tasks, *sorted(_tasks(train) - set(known.tasks)))
    unseen = sorted(_tasks(val) - set(tasks))
    if unseen:
        raise UserError(f"validation frames of tasks {unseen} have no training frames; check data.keys.task")
    draws = tuple((len(part.rows), part.shelf.weight) for part in train)
    found = DataSet(_sequence(train, tasks), _sequence(val, tasks), tasks, draws)
    _check(found, config, known)
    return found


def split_warnings(data: DataSet, config: DataConfig) -> list[str]:
    """A warning where far more frames were set aside for validation than was asked for, since groups are large."""
    count = len(data.train) + len(data.val)
    if config.val is not None or data.val[0].split == "val":
        return []
    if len(data.val) <= 2 * max(1.0, config.val_fraction * count):
        return []
    together = "frames of a formula" if config.split_by == "composition" else f"groups ('{config.keys.group}')"
    return [
        f"{len(data.val)} of {count} frames were set aside for validation where data.val_fraction="
        f"{config.val_fraction} was asked for: {together} are large and stay together; data.split_by=frame sets aside "
        "single frames"
    ]


def coverage(data: DataSet) -> dict[str, dict[str, Any]]:
    """Per task: numbers of frames, and of training frames that have each label; elements."""
    from ase.data import chemical_symbols

    train, val, none = summary_of(data.train), summary_of(data.val), TaskSummary()
    return {
        task: {
            "train": train.get(task, none).frames,
            "val": val.get(task, none).frames,
            **train.get(task, none).labels,
            "elements": [chemical_symbols[z] for z in sorted(train.get(task, none).elements)],
        }
        for task in data.tasks
    }


def data_fingerprint(data: DataSet) -> str:
    """A checksum of the training and validation frames; of stores it takes their own, and which rows are used."""
    if not isinstance(data.train, ChosenFrames) and not isinstance(data.val, ChosenFrames):
        return fingerprint([*data.train, *data.val])
    parts = [f.fingerprint() if isinstance(f, ChosenFrames) else fingerprint(f) for f in (data.train, data.val)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _shelves(sources: Sequence[SourceConfig], config: DataConfig, stores: dict[Path, Store]) -> list[Shelf]:
    """The frames of sources, in order; files of one source that are no stores are read into one list."""
    shelves = []
    for source in sources:
        keys, task = config.keys_of(source), source.task or "default"
        for stored, paths in groupby(files_of(source.path), is_store):
            if stored:
                opened = [_opened(path, task, stores) for path in paths]
                shelves += [Shelf(store, store.columns, source.weight) for store in opened]
            else:
                read = [frame for path in paths for frame in frames_of_file(path, keys, task)]
                shelves.append(_in_memory(read, source.weight))
    return shelves


def _opened(path: Path, task: str, stores: dict[Path, Store]) -> Store:
    """The store there; training and validation share its files, because a process opens them once."""
    place = path.resolve()
    if place not in stores:
        stores[place] = Store(path)
    return stores[place].with_default_task(task)


def _in_memory(frames: list[Frame], weight: float = 1.0) -> Shelf:
    return Shelf(frames, columns_of(frames), weight)


def _split(shelves: Sequence[Shelf], config: Config) -> tuple[list[Chosen], list[Chosen]]:
    """Training and validation frames where no files are given for validation."""
    columns = [shelf.columns for shelf in shelves]
    aside = [marked(each, "val") for each in columns]
    if not any(mask.any() for mask in aside):
        aside = set_aside(columns, config.data.split_by, config.data.val_fraction, config.run.seed)
    kept = [~mask & ~marked(each, "test") for mask, each in zip(aside, columns, strict=True)]
    return choose(shelves, kept), choose(shelves, aside)


def _sequence(chosen: Sequence[Chosen], tasks: tuple[str, ...]) -> Sequence[Frame]:
    """The frames that are chosen: a list, or, where any of them are in a store, a sequence that reads them."""
    parts = [part for part in chosen if len(part.rows)]
    if any(isinstance(part.shelf.frames, Store) for part in parts):
        return ChosenFrames(parts, tasks)
    return with_task_indices([part.shelf.frames[row] for part in parts for row in part.rows.tolist()], tasks)


def _count(chosen: Sequence[Chosen]) -> int:
    return sum(len(part.rows) for part in chosen)


def _tasks(chosen: Sequence[Chosen]) -> set[str]:
    found = set()
    for part in chosen:
        columns = part.shelf.columns
        for start in range(0, len(part.rows), _AT_A_TIME):
            found |= {
                columns.tasks[number] for number in np.unique(columns.task[part.rows[start : start + _AT_A_TIME]])
            }
    return found


def _elements(frames: Sequence[Frame]) -> set[int]:
    return {z for task in summary_of(frames).values() for z in task.elements}


def _check(data: DataSet, config: Config, known: Known) -> None:
    for label in config.loss.weights:
        if not data.has(label):
            key = getattr(config.data.keys, label)
            first = config.data.train[0] if config.data.train else None
            has = ", ".join(frame_label_names(first.path)) if first else "energy, forces, stress"
            raise UserError(
                f"{data.train[0].origin}: no key '{key}', nor has any other training frame (has: {has}); set "
                f"data.keys.{label}=NAME if it is there under another name, or loss.{label}=0"
            )
    elements = sorted(_elements(data.train) | set(known.elements))
    if _elements(data.val) <= set(elements):
        return
    start = 0
    for columns in column_parts(data.val):
        new = columns.row_of_entry()[~np.isin(columns.element, elements)]
        if len(new):
            _refuse_elements(data.val[start + int(new[0])], elements)
        start += len(columns)


def _refuse_elements(frame: Frame, known: Sequence[int]) -> None:
    new = sorted({int(z) for z in frame.structure.atomic_numbers} - set(known))
    raise UserError(
        f"{frame.origin} is for validation and has elements (atomic numbers {new}) that no training frame has"
    )
