"""Edges of a store's frames below a model's cutoffs: what batches are packed by."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64

from janus_graph import Structure
from janus_graph.packing import StructureSizes, structure_sizes
from janus_train.data.store.files import SIZE_TYPES, join_raw, mapped, sizes_path
from janus_train.data.store.jobs import run_jobs
from janus_train.data.store.store import Store
from janus_train.failure import UserError

# Frames whose edges are counted at a time.
_BLOCK = 256


@dataclass(frozen=True, eq=False)
class StoredSizes:
    """What there is of each row, mapped from files.

    Attributes:
        edges: directed edges below the cutoff.
        near_pairs: ordered pairs of near edges with one centre.
        element_edges: for each entry of the column `element`, the edges centred on those atoms.
    """

    edges: Int32[np.ndarray, "rows"]
    near_pairs: Int64[np.ndarray, "rows"]
    element_edges: Int32[np.ndarray, "entries"]


def stored_sizes(store: Store, cutoff: float, near_cutoff: float) -> StoredSizes | None:
    """The sizes for these cutoffs (Å), if they have been measured."""
    path = sizes_path(store.path, cutoff, near_cutoff)
    if not path.is_dir():
        return None
    return StoredSizes(**{name: mapped(path / f"{name}.npy") for name in SIZE_TYPES})


def measure_sizes(
    store: Store, cutoff: float, near_cutoff: float, workers: int = 1, done: Callable[[int], None] = lambda _: None
) -> None:
    """Counts the edges of every frame and keeps the numbers beside the store, unless they are there already.

    What a killed process had done is gone on with.

    Args:
        store: the frames.
        cutoff: edges are strictly shorter (Å).
        near_cutoff: near edges are strictly shorter (Å).
        workers: processes; each holds a few hundred frames at a time.
        done: told of the rows that are done.

    Raises:
        UserError: the store's directory cannot be written to.
    """
    path = sizes_path(store.path, cutoff, near_cutoff)
    if path.is_dir():
        return
    partial_path = path.with_name(f"{path.name}.partial")
    try:
        partial_path.mkdir(exist_ok=True)
        store.close()  # processes that begin as copies of this one open their own
        work = partial(_measure_shard, store.path, partial_path, (cutoff, near_cutoff))
        run_jobs(range(len(store.shards)), work, workers, done)
        for name, kind in SIZE_TYPES.items():
            join_raw(
                (_raw(partial_path, n, name) for n in range(len(store.shards))), partial_path / f"{name}.npy", kind
            )
        for raw in partial_path.glob("*.raw"):
            raw.unlink()
        partial_path.rename(path)
    except OSError as error:
        if path.is_dir():  # another process was faster
            shutil.rmtree(partial_path, ignore_errors=True)
            return
        raise UserError(
            f"the edges below {cutoff:g} and {near_cutoff:g} Å cannot be written beside {store.path} "
            f"({error.strerror}); let its owner run: janus-train data measure {store.path} --cutoff {cutoff:g} "
            f"--near-cutoff {near_cutoff:g}"
        ) from error


def size_arrays(structures: Sequence[Structure], cutoff: float, near_cutoff: float) -> dict[str, np.ndarray]:
    """The sizes of some structures as they are kept."""
    sizes: StructureSizes = structure_sizes(structures, cutoff, near_cutoff)
    found = {
        "edges": sizes.edges,
        "near_pairs": sizes.near_pairs,
        "element_edges": np.concatenate([rows[2] for rows in sizes.by_element]),
    }
    return {name: array.astype(SIZE_TYPES[name]) for name, array in found.items()}


def _measure_shard(store_path: Path, path: Path, cutoffs: tuple[float, float], number: int) -> int:
    store = Store(store_path)
    rows = store.shards[number]
    if all(_raw(path, number, name).exists() for name in SIZE_TYPES):
        return len(rows)
    unfinished = {name: path / f"{number:05d}.{name}.unfinished" for name in SIZE_TYPES}
    files = {name: place.open("wb") for name, place in unfinished.items()}
    for block in _blocks(rows):
        for name, array in size_arrays([store[row].structure for row in block], *cutoffs).items():
            files[name].write(array.tobytes())
    for name, file in files.items():
        file.close()
        unfinished[name].rename(_raw(path, number, name))
    store.close()
    return len(rows)


def _blocks(rows: range) -> Iterator[range]:
    return (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))


def _raw(path: Path, number: int, name: str) -> Path:
    return path / f"{number:05d}.{name}.raw"
