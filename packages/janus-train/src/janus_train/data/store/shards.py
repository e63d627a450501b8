"""Frames of a store as bytes, from files that are opened when they are needed."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from janus_train.data.lmdb_files import open_lmdb
from janus_train.data.store.files import FRAMES, row_key, shard_path
from janus_train.failure import UserError

if TYPE_CHECKING:
    import lmdb

# Files that are open at a time; most systems allow a process 1024.
_OPEN = 512


class ShardFiles:
    """The shards of a store; any number of processes may read them, and a process opens each once.

    Args:
        store: directory of the store.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._open: OrderedDict[int, lmdb.Environment] = OrderedDict()
        self._process, self._lock = os.getpid(), Lock()

    def value(self, shard: int, row: int) -> bytes:
        """The bytes of a row of a shard.

        Raises:
            UserError: it is gone.
        """
        # Both under the lock: another thread must not close a file between its opening and its reading.
        with self._lock:
            value: bytes | None = self._file(shard).begin().get(row_key(row))
        if value is None:
            raise UserError(
                f"row {row} of {shard_path(self._store, shard)} is gone; the store is damaged, convert again"
            )
        return value

    def close(self) -> None:
        """Closes all files; they open again when a row is asked for."""
        with self._lock:
            for file in self._open.values():
                file.close()
            self._open.clear()

    def _file(self, shard: int) -> lmdb.Environment:
        if self._process != os.getpid():  # a forked process must not use what its parent opened
            self._open, self._process = OrderedDict(), os.getpid()
        if shard not in self._open:
            while len(self._open) >= _OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[shard] = open_lmdb(shard_path(self._store, shard) / FRAMES)
        self._open.move_to_end(shard)
        return self._open[shard]
