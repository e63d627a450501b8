"""What lies in a store's directory.

    store.json            what it holds; written last, so that without it there is no store
    shard-00000/          frames.mdb: LMDB, from rows (8 bytes, big-endian, from 0 in each shard) to frames
    atoms.npy, ...        columns of all rows, shard after shard
    geometry.npy          checksum of each row's geometry
    sizes-6-4.5/          edges of each row below 6 Å, and pairs of near edges below 4.5 Å

Until store.json is there: plan.json, and in each shard that is done its columns.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 2
FRAMES = "frames.mdb"
COLUMN_TYPES = {
    "atoms": "<i4", "task": "<i2", "split": "|u1", "group": "<u8", "labels": "|u1", "energy": "<f8",
    "force_square": "<f8", "geometry": "<u8", "element": "|u1", "count": "<i4",
}  # fmt: skip
"""Columns as they lie in shards and in the store; beside them `entries` of each row of a shard, and `first` of all."""
ENTRIES_TYPE, FIRST_TYPE = "<u2", "<i8"
SIZE_TYPES = {"edges": "<i4", "near_pairs": "<i8", "element_edges": "<i4"}

_BYTES_AT_A_TIME = 1 << 24


def shard_path(store: Path, number: int) -> Path:
    """The directory of a shard."""
    return store / f"shard-{number:05d}"


def sizes_path(store: Path, cutoff: float, near_cutoff: float) -> Path:
    """The directory of the sizes of rows with these cutoffs (Å)."""
    return store / f"sizes-{cutoff:g}-{near_cutoff:g}"


def row_key(row: int) -> bytes:
    """The key of a row of a shard; keys are in the order of the rows."""
    return row.to_bytes(8, "big")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file that is there as a whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def join_raw(parts: Iterable[Path], into: Path, kind: str) -> None:
    """Joins files of bare numbers into one .npy file; a few megabytes at a time, there as a whole or not at all."""
    paths = list(parts)
    count = sum(path.stat().st_size for path in paths) // np.dtype(kind).itemsize
    partial = into.with_name(f".{into.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        for path in paths:
            with path.open("rb") as part:
                shutil.copyfileobj(part, file, _BYTES_AT_A_TIME)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(into)


def mapped(path: Path) -> np.ndarray:
    """The array of an .npy file, mapped into memory; empty ones, which cannot be mapped, are read."""
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False) if path.stat().st_size > 128 else np.load(path)
    return array
