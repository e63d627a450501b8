"""Frames of a converted set, read when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from janus_train.data.columns import COLUMN_NAMES, Columns
from janus_train.data.files import STORE_FILE, is_store
from janus_train.data.frame import LABELS, Frame
from janus_train.data.store.codec import decode_frame
from janus_train.data.store.files import FORMAT, mapped
from janus_train.data.store.shards import ShardFiles
from janus_train.failure import UserError


class Store(Sequence[Frame]):
    """The frames of a converted set: a sequence of which nothing is in memory but what was asked for.

    Any number of processes may read one; a process opens it once.

    Args:
        path: its directory.
        default_task: task of frames that name none.

    Attributes:
        path: its directory.
        columns: what is known of all frames, mapped from files.
        geometry: checksum of each frame's geometry.
        fingerprint: a checksum of all frames.

    Raises:
        UserError: no finished store, or one of another version.
    """

    def __init__(self, path: Path, default_task: str = "default") -> None:
        if not is_store(path):
            raise UserError(f"{path} is no finished store; 'janus-train data convert SOURCES --output {path}' makes it")
        about = json.loads((path / STORE_FILE).read_text())
        if about["format"] != FORMAT:
            raise UserError(f"{path} has format {about['format']}, this version reads {FORMAT}; convert the data again")
        self.path = path
        self.fingerprint: str = about["fingerprint"]
        self._default_task = default_task
        self._about = about
        self._starts = np.concatenate([[0], np.cumsum(about["shards"])]).astype(np.int64)
        self.columns = Columns(
            **{name: mapped(path / f"{name}.npy") for name in COLUMN_NAMES},
            tasks=tuple(name or default_task for name in about["tasks"]),
        )
        self.geometry = mapped(path / "geometry.npy")
        self._files = ShardFiles(path)

    def __len__(self) -> int:
        return len(self.columns)

    @overload
    def __getitem__(self, place: int) -> Frame: ...
    @overload
    def __getitem__(self, place: slice) -> list[Frame]: ...
    def __getitem__(self, place: int | slice) -> Frame | list[Frame]:
        if isinstance(place, slice):
            return [self[row] for row in range(*place.indices(len(self)))]
        row = int(place) + (len(self) if place < 0 else 0)
        if not 0 <= row < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        frame = decode_frame(self._files.value(shard, row - int(self._starts[shard])))
        return frame if frame.task else replace(frame, task=self._default_task)

    def __iter__(self) -> Iterator[Frame]:
        return (self[row] for row in range(len(self)))

    @property
    def shards(self) -> tuple[range, ...]:
        """Rows of each shard."""
        return tuple(range(int(a), int(b)) for a, b in zip(self._starts[:-1], self._starts[1:], strict=True))

    def label_names(self) -> list[str]:
        """Which labels there are in it."""
        return [label for label in LABELS if label in self._about["labels"]]

    def about(self) -> dict[str, Any]:
        """What its file says of it: rows, tasks, labels, where they came from."""
        return dict(self._about)

    def with_default_task(self, task: str) -> Store:
        """The same store, its files shared, with another task for frames that name none."""
        other = copy(self)
        other._default_task = task
        other.columns = replace(self.columns, tasks=tuple(name or task for name in self._about["tasks"]))
        return other

    def close(self) -> None:
        """Closes its files; they open again when a frame is asked for."""
        self._files.close()
