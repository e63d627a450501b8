"""What does a row of an aselmdb file cost, decoded directly and through ase-db-backends, and are the values the same?

Writes files like those of inorganic crystals, small molecules and large molecules with ase-db-backends, reads every row
both ways, compares every value, and prints milliseconds a row of rounds that are taken in turn: the least, which other
work on the machine adds to, and the median.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from janus_train.config import KeyNames
from janus_train.data.aselmdb import aselmdb_frames
from janus_train.data.frame import Frame

# Atoms of a row, whether it repeats, and how many numbers for each atom are in its data beside the labels: OMol25 has
# charges and spins by several methods there.
KINDS = {
    "crystals of 20 atoms": (20, True, 0),
    "crystals of 100 atoms": (100, True, 0),
    "molecules of 50 atoms": (50, False, 0),
    "molecules of 50 atoms, much in their data": (50, False, 6),
    "molecules of 200 atoms": (200, False, 0),
}


def write_file(path: Path, kind: tuple[int, bool, int], rows: int) -> None:
    atoms, periodic, more = kind
    rng = np.random.default_rng(0)
    with connect(path, type="aselmdb", use_lock_file=False) as database:
        for row in range(rows):
            frame = Atoms(rng.choice([1, 6, 7, 8, 26], atoms), rng.uniform(0, 12, (atoms, 3)), pbc=periodic,
                          cell=np.eye(3) * 12 + rng.normal(0, 0.2, (3, 3)) if periodic else None)  # fmt: skip
            labels = {"energy": float(rng.normal(-1e5, 10)), "forces": rng.normal(size=(atoms, 3))}
            if periodic:
                labels["stress"] = rng.normal(size=6)
            frame.calc = SinglePointCalculator(frame, **labels)
            data = {"charge": row % 3 - 1, "spin": 1 + row % 2, "source": f"made/{row}"}
            data |= {f"charges_{number}": rng.normal(size=atoms).tolist() for number in range(more)}
            database.write(frame, data=data)


def through_ase(path: Path) -> Iterator[Atoms]:
    database = connect(path, type="aselmdb", readonly=True, use_lock_file=False)
    for row in database.select():
        atoms = row.toatoms()
        atoms.info.update(row.data)
        yield atoms
    database.close()


def directly(path: Path) -> Iterator[Frame]:
    return aselmdb_frames(path, KeyNames(), "default")


def differences(frames: list[Frame], rows: list[Atoms]) -> int:
    """How many values differ, in any bit."""
    wrong = 0
    for frame, atoms in zip(frames, rows, strict=True):
        structure, results = frame.structure, atoms.calc.results
        pairs = [
            (structure.atomic_numbers, atoms.numbers), (structure.positions, atoms.positions),
            (structure.cell, atoms.cell.array), (structure.periodic, atoms.pbc), (frame.energy, results["energy"]),
            (frame.forces, results["forces"]), (structure.charge, atoms.info["charge"]),
            (structure.spin, atoms.info["spin"]),
        ]  # fmt: skip
        if frame.stress is not None:
            pairs.append((frame.stress, atoms.get_stress(voigt=False)))
        wrong += sum(int((np.asarray(one) != np.asarray(other)).sum()) for one, other in pairs)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    report = {}
    with tempfile.TemporaryDirectory() as directory:
        for number, (name, kind) in enumerate(KINDS.items()):
            path = Path(directory) / f"{number}.aselmdb"
            write_file(path, kind, arguments.rows)
            times: dict[str, list[float]] = {"ase-db-backends": [], "direct": []}
            for _ in range(arguments.rounds):
                for way, read in (("ase-db-backends", through_ase), ("direct", directly)):
                    gc.collect()  # or one way pays for what the other left
                    began = time.process_time()
                    for _ in read(path):
                        pass
                    times[way].append(1000 * (time.process_time() - began) / arguments.rows)
            found = {
                kind: {way: of(values) for way, values in times.items()}
                for kind, of in (("least", min), ("median", statistics.median))
            }
            report[name] = {
                "ms_per_row": found,
                "ratio": {kind: own["ase-db-backends"] / own["direct"] for kind, own in found.items()},
                "values_that_differ": differences(list(directly(path)), list(through_ase(path))),
            }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
