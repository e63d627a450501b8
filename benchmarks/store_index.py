"""What does the index of a store of a hundred million frames need, in memory and time, to begin an epoch?

Writes a synthetic index (columns of numbers; no frames, which an index is not asked for), opens it as training would,
splits it, cuts an epoch into batches and takes some of them. Memory is what the process holds of its own (anonymous
memory, from /proc/self/status), because mapped columns are the system's to give and take.
"""

import argparse
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from janus_train.data.batching import epoch_batches
from janus_train.data.chosen import ChosenFrames, Shelf, choose
from janus_train.data.columns import SPLITS
from janus_train.data.files import STORE_FILE
from janus_train.data.sizes import frame_sizes
from janus_train.data.split import marked, set_aside
from janus_train.data.statistics import fit_statistics
from janus_train.data.store import Store
from janus_train.data.store.files import COLUMN_TYPES, FORMAT, SIZE_TYPES, sizes_path, write_json

_PART = 1 << 22
CUTOFFS = (6.0, 4.5)


def memory_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


class MostMemory:
    """The most megabytes of its own that the process had in a context, looked at every 20 ms."""

    def __enter__(self) -> "MostMemory":
        self.mb, self._going = memory_mb(), True
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while self._going:
            self.mb = max(self.mb, memory_mb())
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self._going = False
        self._thread.join()


def write_index(path: Path, rows: int, split: bool) -> None:
    """Groups of about twenty frames, each group of a composition of three elements; one frame in twenty for validation,
    if frames are marked.
    """
    path.mkdir(parents=True, exist_ok=True)
    sizes = sizes_path(path, *CUTOFFS)
    sizes.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)

    def column(file: Path, kind: str, count: int, values) -> None:
        array = np.lib.format.open_memmap(file, mode="w+", dtype=kind, shape=(count,))
        for start in range(0, count, _PART):
            array[start : start + _PART] = values(start, min(_PART, count - start))
        array.flush()

    def atoms_of(row: np.ndarray, place: int) -> np.ndarray:
        return 1 + (row // 20 * (7, 13, 17)[place]) % (29, 31, 37)[place]

    def element_of(row: np.ndarray, place: int) -> np.ndarray:
        return 1 + 3 * (row // 20 % 30) + place

    def contents(start: int, count: int, values) -> np.ndarray:
        """Of each frame's three entries; parts begin anywhere."""
        entries = start + np.arange(count)
        return np.choose(entries % 3, [values(entries // 3, place) for place in range(3)])

    makers = {
        "atoms": lambda start, n: sum(atoms_of(start + np.arange(n), place) for place in range(3)),
        "task": lambda _, n: rng.integers(0, 3, n),
        "split": lambda _, n: np.where(rng.random(n) < 0.05, SPLITS.index("val"), 1) if split else np.zeros(n),
        "group": lambda start, n: (start + np.arange(n)) // 20 + 1, "labels": lambda _, n: np.full(n, 7),
        "energy": lambda _, n: rng.normal(size=n), "force_square": lambda _, n: rng.random(n),
        "geometry": lambda _, n: rng.integers(1, 1 << 62, n),
    }  # fmt: skip
    for name, maker in makers.items():
        column(path / f"{name}.npy", COLUMN_TYPES[name], rows, maker)
    column(path / "first.npy", "<i8", rows + 1, lambda start, n: 3 * (start + np.arange(n)))
    column(path / "element.npy", "|u1", 3 * rows, lambda start, n: contents(start, n, element_of))
    column(path / "count.npy", "<i4", 3 * rows, lambda start, n: contents(start, n, atoms_of))
    column(sizes / "edges.npy", SIZE_TYPES["edges"], rows, lambda _, n: rng.integers(20, 8000, n))
    column(sizes / "near_pairs.npy", SIZE_TYPES["near_pairs"], rows, lambda _, n: rng.integers(20, 80000, n))
    column(sizes / "element_edges.npy", SIZE_TYPES["element_edges"], 3 * rows, lambda _, n: np.full(n, 100))
    about = {"format": FORMAT, "rows": rows, "shards": [rows], "tasks": ["a", "b", "c"], "fingerprint": "made"}
    write_json(path / STORE_FILE, {**about, "labels": ["energy", "forces", "stress"], "sources": []})


def begin_epoch(path: Path, budget: int) -> dict[str, float]:
    """Seconds of each part, and megabytes of the process's own before and after."""
    report, before = {"mb_before": memory_mb()}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal before
        report[f"{name}_s"] = round(time.perf_counter() - before, 3)
        report[f"{name}_mb_after"] = round(memory_mb())
        before = time.perf_counter()

    store = Store(path)
    lap("open")
    aside = marked(store.columns, "val")
    if not aside.any():
        (aside,) = set_aside([store.columns], "group", 0.05, 0)
    shelf = Shelf(store, store.columns)
    train = ChosenFrames(choose([shelf], [~aside]), store.columns.tasks)
    val = ChosenFrames(choose([shelf], [aside]), store.columns.tasks)
    del aside
    lap("split")
    fit_statistics(train, store.columns.tasks)
    lap("references")
    sizes = frame_sizes(train, *CUTOFFS)
    batches = epoch_batches(sizes.edges, budget, 0, 0)
    lap("epoch")
    for number in range(0, len(batches), max(1, len(batches) // 1000)):
        sizes.of(batches[number])
    lap("thousand_batches")
    return {**report, "train": len(train), "val": len(val), "batches": len(batches)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--budget", type=int, default=1_000_000)
    parser.add_argument(
        "--marked", action="store_true", help="frames are marked train or val; else groups are set aside"
    )
    parser.add_argument("--directory", type=Path, help="where to write the index, some 80 bytes a row; kept if given")
    arguments = parser.parse_args()
    path = arguments.directory or Path(tempfile.mkdtemp())
    try:
        if not (path / STORE_FILE).exists():
            write_index(path, arguments.rows, arguments.marked)
        with MostMemory() as most:
            report = begin_epoch(path, arguments.budget)
        report["most_mb"] = round(most.mb)
        report["index_gb"] = round(sum(file.stat().st_size for file in path.rglob("*.npy")) / 1e9, 2)
        print(json.dumps(report))
    finally:
        if arguments.directory is None:
            shutil.rmtree(path)


if __name__ == "__main__":
    main()
