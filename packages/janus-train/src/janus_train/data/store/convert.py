"""From files of any kind to a store: in parallel, in constant memory, and taken up again where it was killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from janus_train.config import KeyNames
from janus_train.data import aselmdb
from janus_train.data.columns import columns_of
from janus_train.data.files import STORE_FILE, files_of, is_store
from janus_train.data.frame import LABELS, Frame
from janus_train.data.geometry import geometry_checksums
from janus_train.data.lmdb_files import lmdb_package
from janus_train.data.read import frames_of_file
from janus_train.data.store.codec import encode_frame
from janus_train.data.store.files import (
    COLUMN_TYPES,
    ENTRIES_TYPE,
    FIRST_TYPE,
    FORMAT,
    FRAMES,
    SIZE_TYPES,
    join_raw,
    row_key,
    shard_path,
    sizes_path,
    write_json,
)
from janus_train.data.store.jobs import run_jobs
from janus_train.data.store.sizes import size_arrays
from janus_train.failure import UserError

# Frames that a worker holds at a time.
_BLOCK = 256
# So many shards are made, enough for many workers and few enough to keep open, of at least so much of the sources each.
# A larger file is a shard of its own, unless it is an aselmdb file.
_SHARDS, _SMALLEST_SHARD = 256, 2 << 20
# LMDB sets aside addresses, not space.
_LARGEST_SHARD = 1 << 40


@dataclass(frozen=True)
class Conversion:
    """What is converted, and how.

    Attributes:
        sources: paths, each with the names of its labels and the task of its frames that name none.
        cutoffs: also count edges below these two (Å), so that training with them need not.
        shard_bytes: how much of the sources makes a shard; None for some 256 shards.
    """

    sources: tuple[tuple[Path, KeyNames, str], ...]
    cutoffs: tuple[float, float] | None = None
    shard_bytes: int | None = None


@dataclass(frozen=True)
class _Piece:
    """A file or, of an aselmdb file, some of its rows."""

    path: str
    keys: dict[str, str]
    task: str
    rows: tuple[int, int] | None = None


def convert(
    conversion: Conversion, output: Path, workers: int = 1, done: Callable[[int, int], None] = lambda rows, jobs: None
) -> dict[str, Any]:
    """Makes a store of files, or goes on with one that was not finished; returns what the store says of itself.

    Frames are in the order of the sources. A worker holds a few hundred of them at a time. A shard is there as a whole
    or not at all, and so is the store: `output` is no store before everything is in it.

    Args:
        conversion: what to convert.
        output: the store's directory; new, empty, or what the same conversion left when it was killed.
        workers: processes.
        done: told, after each shard, how many rows it has and how many shards there will be.

    Raises:
        UserError: `output` holds something else, and whatever is wrong with the sources.
    """
    lmdb_package()
    if is_store(output):
        raise UserError(f"{output} holds a finished store; remove it or choose another --output")
    jobs = _jobs(conversion)
    plan = {"format": FORMAT, "cutoffs": conversion.cutoffs, "jobs": [[asdict(p) for p in job] for job in jobs],
            "files": _state_of_files(jobs)}  # fmt: skip
    _begin(output, plan)
    work = partial(_convert_job, output, conversion.cutoffs)
    run_jobs(list(enumerate(jobs)), work, workers, lambda rows: done(rows, len(jobs)))
    return _finish(output, conversion, len(jobs))


def _jobs(conversion: Conversion) -> list[list[_Piece]]:
    """Pieces in order, in groups of about the size of a shard."""
    files = [(file, keys, task) for path, keys, task in conversion.sources for file in files_of(path)]
    total = sum(_bytes_of(file) for file, _, _ in files)
    shard = conversion.shard_bytes or max(_SMALLEST_SHARD, -(-total // _SHARDS))
    jobs: list[list[_Piece]] = [[]]
    room = shard
    for file, keys, task in files:
        for piece, size in _pieces(file, keys, task, shard):
            if jobs[-1] and size > room:
                jobs.append([])
                room = shard
            jobs[-1].append(piece)
            room -= size
    return jobs


def _pieces(file: Path, keys: KeyNames, task: str, shard_bytes: int) -> Iterator[tuple[_Piece, int]]:
    size = _bytes_of(file)
    about = (str(file), keys.model_dump(), task)
    parts = -(-size // shard_bytes) if file.suffix == ".aselmdb" else 1
    if parts <= 1:
        yield _Piece(*about), size
        return
    rows = aselmdb.row_count(file)
    bounds = np.linspace(1, rows + 1, parts + 1).astype(int).tolist()
    for first, beyond in pairwise(bounds):
        yield _Piece(*about, (first, beyond)), size // parts


def _bytes_of(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def _state_of_files(jobs: Sequence[Sequence[_Piece]]) -> list[list[Any]]:
    """Sizes and times by which a file that has changed is known."""
    paths = dict.fromkeys(Path(piece.path) for job in jobs for piece in job)
    return [[str(path), _bytes_of(path), path.stat().st_mtime_ns] for path in paths]


def _begin(output: Path, plan: dict[str, Any]) -> None:
    plan_file = output / "plan.json"
    if plan_file.exists():
        if json.loads(plan_file.read_text()) != json.loads(json.dumps(plan)):
            raise UserError(
                f"{output} holds the beginning of another conversion, of other files or with other settings; remove it "
                "or choose another --output"
            )
        return
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty; choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    write_json(plan_file, plan)


def _convert_job(output: Path, cutoffs: tuple[float, float] | None, job: tuple[int, Sequence[_Piece]]) -> int:
    """Makes one shard, unless it is there; returns its rows."""
    number, pieces = job
    path = shard_path(output, number)
    if not path.is_dir():
        unfinished = path.with_name(f"{path.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        about = _write_shard(unfinished, _frames(pieces), cutoffs)
        write_json(unfinished / "shard.json", about)
        unfinished.rename(path)
    return int(json.loads((path / "shard.json").read_text())["rows"])


def _frames(pieces: Sequence[_Piece]) -> Iterator[Frame]:
    for piece in pieces:
        path, keys = Path(piece.path), KeyNames(**piece.keys)
        if piece.rows is None:
            yield from frames_of_file(path, keys, piece.task)
        else:
            yield from aselmdb.aselmdb_frames(path, keys, piece.task, range(*piece.rows))


def _write_shard(path: Path, frames: Iterator[Frame], cutoffs: tuple[float, float] | None) -> dict[str, Any]:
    digest, row, tasks, labels = hashlib.sha256(), 0, dict[str, int](), 0
    names = [*COLUMN_TYPES, "entries", *(SIZE_TYPES if cutoffs else ())]
    columns = {name: (path / f"{name}.raw").open("wb") for name in names}
    file = lmdb_package().open(
        str(path / FRAMES), subdir=False, map_size=_LARGEST_SHARD, lock=False, sync=False, metasync=False
    )
    try:
        while block := list(islice(frames, _BLOCK)):
            with file.begin(write=True) as transaction:
                for frame in block:
                    value = encode_frame(frame)
                    digest.update(value)
                    transaction.put(row_key(row), value, append=True)
                    row += 1
            arrays = _block_columns(block, tasks, cutoffs)
            labels |= int(np.bitwise_or.reduce(arrays["labels"]))
            for name, array in arrays.items():
                columns[name].write(array.tobytes())
        file.sync(True)
    finally:
        file.close()
        for column in columns.values():
            column.flush()
            os.fsync(column.fileno())
            column.close()
    return {"rows": row, "tasks": list(tasks), "labels": labels, "fingerprint": digest.hexdigest()}


def _block_columns(
    block: Sequence[Frame], tasks: dict[str, int], cutoffs: tuple[float, float] | None
) -> dict[str, np.ndarray]:
    """Columns of some frames, their tasks counted as in `tasks`, which learns new ones."""
    structures = [frame.structure for frame in block]
    columns = columns_of(block)
    place = np.array([tasks.setdefault(name, len(tasks)) for name in columns.tasks])
    arrays: dict[str, np.ndarray] = {
        **{name: getattr(columns, name) for name in COLUMN_TYPES if name not in ("task", "geometry")},
        "task": place[columns.task],
        "geometry": geometry_checksums(structures),
        "entries": np.diff(columns.first),
    }
    types = {**COLUMN_TYPES, "entries": ENTRIES_TYPE}
    arrays = {name: array.astype(types[name]) for name, array in arrays.items()}
    return {**arrays, **(size_arrays(structures, *cutoffs) if cutoffs else {})}


def _finish(output: Path, conversion: Conversion, count: int) -> dict[str, Any]:
    """Joins the columns of all shards, and says that the store is whole."""
    shards = [shard_path(output, number) for number in range(count)]
    about = [json.loads((shard / "shard.json").read_text()) for shard in shards]
    tasks = list(dict.fromkeys(name for shard in about for name in shard["tasks"]))
    for name, kind in COLUMN_TYPES.items():
        if name != "task":
            join_raw((shard / f"{name}.raw" for shard in shards), output / f"{name}.npy", kind)
    _join_tasks(output, shards, [[tasks.index(name) for name in shard["tasks"]] for shard in about])
    rows = [shard["rows"] for shard in about]
    _join_first(output, shards, sum(rows))
    if conversion.cutoffs:
        sizes = sizes_path(output, *conversion.cutoffs)
        sizes.mkdir(exist_ok=True)
        for name, kind in SIZE_TYPES.items():
            join_raw((shard / f"{name}.raw" for shard in shards), sizes / f"{name}.npy", kind)
    labels = [label for place, label in enumerate(LABELS) if any(shard["labels"] & 1 << place for shard in about)]
    content = {
        "format": FORMAT,
        "rows": sum(rows),
        "shards": rows,
        "tasks": tasks,
        "labels": labels,
        "fingerprint": hashlib.sha256("".join(shard["fingerprint"] for shard in about).encode()).hexdigest(),
        "sources": [str(path) for path, _, _ in conversion.sources],
    }
    write_json(output / STORE_FILE, content)
    for shard in shards:
        for raw in shard.glob("*.raw"):
            raw.unlink()
    (output / "plan.json").unlink()
    return content


def _join_tasks(output: Path, shards: Sequence[Path], places: Sequence[Sequence[int]]) -> None:
    """The column of tasks, which every shard counts for itself."""
    numbered = []
    for shard, place in zip(shards, places, strict=True):
        of_store = np.array([*place, 0], dtype=COLUMN_TYPES["task"])[
            np.fromfile(shard / "task.raw", COLUMN_TYPES["task"])
        ]
        of_store.tofile(target := shard / "task-of-store.raw")
        numbered.append(target)
    join_raw(numbered, output / "task.npy", COLUMN_TYPES["task"])


def _join_first(output: Path, shards: Sequence[Path], rows: int) -> None:
    """Where each row's entries begin, from the numbers of entries."""
    partial_path = output / ".first.npy.partial"
    first = np.lib.format.open_memmap(partial_path, mode="w+", dtype=FIRST_TYPE, shape=(rows + 1,))
    at, total = 1, 0
    for shard in shards:
        ends = total + np.cumsum(np.fromfile(shard / "entries.raw", ENTRIES_TYPE), dtype=FIRST_TYPE)
        first[at : at + len(ends)] = ends
        at, total = at + len(ends), int(ends[-1]) if len(ends) else total
    first.flush()
    partial_path.replace(output / "first.npy")
