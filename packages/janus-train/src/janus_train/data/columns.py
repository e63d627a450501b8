"""What is known of many frames without reading them: one array for each property."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float64, Int16, Int32, Int64, UInt8, UInt64

from janus_train.data.frame import LABELS, Frame
from janus_train.data.on_demand import starts_of

SPLITS = ("", "train", "val", "test")
"""What a split's number stands for; marks that are none of these count as no mark."""

_AT_A_TIME = 1 << 20


@dataclass(frozen=True, eq=False)
class Columns:
    """A row for each frame.

    Attributes:
        atoms: of the frame.
        task: place of its task's name in `tasks`.
        split: place of its split in `SPLITS`.
        group: checksum of its group's name; 0 for a frame that stands alone.
        labels: bit n is set where it has the n-th of `LABELS`.
        energy: eV; NaN where it has none.
        force_square: sum of its squared force components, eV²/Å²; zero where it has no forces.
        first: of its entries in `element` and `count`; one more than there are rows.
        element: atomic numbers in it, ascending.
        count: atoms of each.
        tasks: names of the tasks.
    """

    atoms: Int32[np.ndarray, "rows"]
    task: Int16[np.ndarray, "rows"]
    split: UInt8[np.ndarray, "rows"]
    group: UInt64[np.ndarray, "rows"]
    labels: UInt8[np.ndarray, "rows"]
    energy: Float64[np.ndarray, "rows"]
    force_square: Float64[np.ndarray, "rows"]
    first: Int64[np.ndarray, "rows+1"]
    element: UInt8[np.ndarray, "entries"]
    count: Int32[np.ndarray, "entries"]
    tasks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.atoms)

    def take(self, rows: Int64[np.ndarray, "taken"]) -> Columns:
        """Some rows, in memory."""
        first, entries = ragged(self.first, rows)
        return Columns(
            **{name: np.asarray(getattr(self, name)[rows]) for name in PER_ROW},
            first=first,
            element=np.asarray(self.element[entries]),
            count=np.asarray(self.count[entries]),
            tasks=self.tasks,
        )

    def part(self, start: int, stop: int) -> Columns:
        """Consecutive rows, in memory."""
        low, high = int(self.first[start]), int(self.first[stop])
        return Columns(
            **{name: np.asarray(getattr(self, name)[start:stop]) for name in PER_ROW},
            first=np.asarray(self.first[start : stop + 1]) - low,
            element=np.asarray(self.element[low:high]),
            count=np.asarray(self.count[low:high]),
            tasks=self.tasks,
        )

    def parts(self, at_a_time: int = _AT_A_TIME) -> Iterator[Columns]:
        """All rows, so many at a time."""
        for start in range(0, len(self), at_a_time):
            yield self.part(start, min(start + at_a_time, len(self)))

    def has(self, label: str) -> Bool[np.ndarray, "rows"]:
        """Which rows have a label."""
        return (self.labels & label_bit(label)) != 0

    def row_of_entry(self) -> Int64[np.ndarray, "entries"]:
        """The row that each entry of `element` belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.first))


PER_ROW = ("atoms", "task", "split", "group", "labels", "energy", "force_square")
"""Columns with one value a row."""
COLUMN_NAMES = tuple(field.name for field in fields(Columns) if field.name != "tasks")


def label_bit(label: str) -> int:
    """The bit of a label in the column of labels."""
    return 1 << LABELS.index(label)


def columns_of(frames: Sequence[Frame]) -> Columns:
    """The columns of frames in memory; tasks in the order in which they first come."""
    tasks = {name: place for place, name in enumerate(dict.fromkeys(frame.task for frame in frames))}
    contents = [np.unique(frame.structure.atomic_numbers, return_counts=True) for frame in frames]
    sizes = [len(elements) for elements, _ in contents]
    return Columns(
        atoms=np.array([len(frame.structure) for frame in frames], dtype=np.int32),
        task=np.array([tasks[frame.task] for frame in frames], dtype=np.int16),
        split=np.array([_split_number(frame.split) for frame in frames], dtype=np.uint8),
        group=np.array([checksum(frame.group) for frame in frames], dtype=np.uint64),
        labels=np.array([sum(label_bit(label) for label in LABELS if frame.has(label)) for frame in frames], np.uint8),
        energy=np.array([np.nan if frame.energy is None else frame.energy for frame in frames], dtype=np.float64),
        force_square=np.array([0.0 if f.forces is None else (f.forces**2).sum() for f in frames], dtype=np.float64),
        first=starts_of(sizes),
        element=np.concatenate([np.zeros(0), *(elements for elements, _ in contents)]).astype(np.uint8),
        count=np.concatenate([np.zeros(0), *(counts for _, counts in contents)]).astype(np.int32),
        tasks=tuple(tasks),
    )


def formulas(columns: Columns) -> UInt64[np.ndarray, "rows"]:
    """A checksum of each row's formula, the same for multiples of a formula; never 0."""
    if not len(columns):
        return np.zeros(0, dtype=np.uint64)
    starts = columns.first[:-1]
    unit = np.gcd.reduceat(columns.count, starts).astype(np.int64)
    reduced = columns.count // np.repeat(unit, np.diff(columns.first))
    entries = mixed(columns.element.astype(np.uint64) << np.uint64(32) | reduced.astype(np.uint64))
    return np.maximum(np.add.reduceat(entries, starts), np.uint64(1))


def checksum(name: str) -> int:
    """64 bits of a name; 0 for the empty one, and for it alone."""
    if not name:
        return 0
    return max(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"), 1)


def mixed(values: UInt64[np.ndarray, "n"], salt: int = 0) -> UInt64[np.ndarray, "n"]:
    """Numbers that look random, one for each number: the finaliser of SplitMix64 (Steele, Lea, Flood, 2014)."""
    with np.errstate(over="ignore"):
        bits = values + np.uint64((0x9E3779B97F4A7C15 * (salt + 1)) % 2**64)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))


def ragged(
    first: Int64[np.ndarray, "rows+1"], rows: Int64[np.ndarray, "taken"]
) -> tuple[Int64[np.ndarray, "taken+1"], Int64[np.ndarray, "entries"]]:
    """For some rows of unequal length: where each begins among those taken, and places of all their entries."""
    starts = np.asarray(first[rows])
    sizes = np.asarray(first[np.asarray(rows) + 1]) - starts
    begins = starts_of(sizes)
    return begins, np.repeat(starts - begins[:-1], sizes) + np.arange(begins[-1])


def _split_number(name: str) -> int:
    return SPLITS.index(name) if name in SPLITS else 0
