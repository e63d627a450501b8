"""Frames of a converted set, read when they are asked for."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from janus_train.data.columns import COLUMN_NAMES, Columns
from janus_train.data.files import STORE_FILE, is_store
from janus_train.data.frame import LABELS, Frame
from janus_train.data.on_demand import OnDemand, part_and_row, starts_of
from janus_train.data.store.codec import decode_frame
from janus_train.data.store.files import FORMAT, mapped
from janus_train.data.store.shards import ShardFiles
from janus_train.failure import UserError


class Store(OnDemand[Frame]):
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
        self._starts = starts_of(about["shards"])
        self.columns = Columns(
            **{name: mapped(path / f"{name}.npy") for name in COLUMN_NAMES},
            tasks=tuple(name or default_task for name in about["tasks"]),
        )
        self.geometry = mapped(path / "geometry.npy")
        self._files = ShardFiles(path)

    def __len__(self) -> int:
        return len(self.columns)

    def _item(self, place: int) -> Frame:
        frame = decode_frame(self._files.value(*part_and_row(self._starts, place)))
        return frame if frame.task else replace(frame, task=self._default_task)

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
