"""Frames chosen from lists and stores, as one sequence that holds nothing but where they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from janus_train.data.columns import Columns, columns_of
from janus_train.data.frame import LABELS, Frame, fingerprint
from janus_train.data.on_demand import OnDemand, part_and_row, starts_of
from janus_train.data.store import Store

_AT_A_TIME = 1 << 20


@dataclass(frozen=True, eq=False)
class Shelf:
    """Where frames are: a list in memory, or a store.

    Attributes:
        frames: all of them.
        columns: what is known of each.
        weight: how often each is drawn in an epoch.
    """

    frames: list[Frame] | Store
    columns: Columns
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some rows of a shelf, ascending."""

    shelf: Shelf
    rows: np.ndarray


class ChosenColumn:
    """A property of chosen frames, gathered where it is asked for: whole numbers, by place.

    Args:
        parts: for each shelf its column (anything that rows can be looked up in), and the rows that are chosen from it.
    """

    def __init__(self, parts: Sequence[tuple[Any, np.ndarray]]) -> None:
        self._parts = parts
        self._starts = starts_of([len(rows) for _, rows in parts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, places: Any) -> Any:
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        wanted = np.asarray(places, dtype=np.int64)
        if wanted.ndim == 0:
            return self[wanted[None]][0]
        gathered = np.zeros(len(wanted), dtype=np.int64)
        part_of = np.searchsorted(self._starts, wanted, side="right") - 1
        for number in np.unique(part_of):
            column, rows = self._parts[number]
            here = part_of == number
            gathered[here] = column[rows[wanted[here] - self._starts[number]]]
        return gathered

    def max(self) -> int:
        """The largest of them; 0 of none."""
        largest = 0
        for column, rows in self._parts:
            for start in range(0, len(rows), _AT_A_TIME):
                largest = max(largest, int(column[rows[start : start + _AT_A_TIME]].max()))
        return largest


Column = np.ndarray | ChosenColumn
"""A property of frames in memory, or of chosen ones."""


@dataclass
class TaskSummary:
    """What there is of a task.

    Attributes:
        frames: how many.
        labels: how many frames have each.
        elements: atomic numbers in them.
    """

    frames: int = 0
    labels: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LABELS, 0))
    elements: set[int] = field(default_factory=set)


class ChosenFrames(OnDemand[Frame]):
    """Frames of several shelves, one after the other, their structures numbered by the place of their task.

    Args:
        parts: what is chosen.
        tasks: names of all tasks.
    """

    def __init__(self, parts: Sequence[Chosen], tasks: Sequence[str]) -> None:
        self.parts = tuple(parts)
        self._task_numbers = {name: place for place, name in enumerate(tasks)}
        self._starts = starts_of([len(part.rows) for part in parts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _item(self, place: int) -> Frame:
        number, row = part_and_row(self._starts, place)
        part = self.parts[number]
        frame = part.shelf.frames[int(part.rows[row])]
        return replace(frame, structure=replace(frame.structure, task=self._task_numbers[frame.task]))

    @cached_property
    def summary(self) -> dict[str, TaskSummary]:
        """What there is of each task."""
        return _summed(column_parts(self))

    def fingerprint(self) -> str:
        """A checksum of the frames in their order, which of stores takes their own and the rows that are chosen."""
        digest = hashlib.sha256()
        for part in self.parts:
            frames = part.shelf.frames
            if isinstance(frames, Store):
                digest.update(frames.fingerprint.encode())
                digest.update(" ".join(part.shelf.columns.tasks).encode())
                digest.update(np.ascontiguousarray(part.rows).data)
            else:
                digest.update(fingerprint(frames[row] for row in part.rows.tolist()).encode())
        return digest.hexdigest()


def choose(shelves: Sequence[Shelf], masks: Sequence[Bool[np.ndarray, "rows"]]) -> list[Chosen]:
    """The rows of each shelf where its mask is True."""
    return [Chosen(shelf, rows_of(mask)) for shelf, mask in zip(shelves, masks, strict=True)]


def rows_of(mask: Bool[np.ndarray, "rows"]) -> np.ndarray:
    """The places where a mask is True, in as few bytes as they fit in."""
    kind = np.min_scalar_type(max(len(mask) - 1, 0))
    parts = [
        (start + np.flatnonzero(mask[start : start + _AT_A_TIME])).astype(kind)
        for start in range(0, len(mask), _AT_A_TIME)
    ]
    return np.concatenate([np.zeros(0, dtype=kind), *parts])


def column_parts(frames: Sequence[Frame]) -> Iterator[Columns]:
    """What is known of frames, in their order, of at most a million at a time; nothing is read of those in stores."""
    if isinstance(frames, ChosenFrames):
        for part in frames.parts:
            for start in range(0, len(part.rows), _AT_A_TIME):
                rows: Int64[np.ndarray, "taken"] = part.rows[start : start + _AT_A_TIME].astype(np.int64)
                yield part.shelf.columns.take(rows)
    elif isinstance(frames, Store):
        yield from frames.columns.parts()
    else:
        yield columns_of(frames)


def summary_of(frames: Sequence[Frame]) -> dict[str, TaskSummary]:
    """What there is of each task."""
    return frames.summary if isinstance(frames, ChosenFrames) else _summed(column_parts(frames))


def _summed(parts: Iterable[Columns]) -> dict[str, TaskSummary]:
    found: dict[str, TaskSummary] = {}
    for columns in parts:
        for number in np.unique(columns.task).tolist():
            own = columns.task == number
            task = found.setdefault(columns.tasks[number], TaskSummary())
            task.frames += int(own.sum())
            for label in LABELS:
                task.labels[label] += int((columns.has(label) & own).sum())
            task.elements |= set(
                np.flatnonzero(np.bincount(columns.element[np.repeat(own, np.diff(columns.first))])).tolist()
            )
    return found
