"""The defaults, untouched, on 500 frames of one molecule, judged on 1000 others of the same trajectory.

    python benchmarks/one_molecule.py [--output DIRECTORY] [SETTINGS ...]

Ethanol at 500 K by GFN2-xTB (needs tblite), a frame every 5 fs in random order: `train.extxyz` and `test.extxyz` of the
output, which are taken as they are where they exist. Trains `janus-train train data.train=train.extxyz`, or goes on
where that was stopped; prints JSON.
"""

import argparse
import json
import os
import platform
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from mlearn import train

from janus_train.recipes.matris_inference import evaluate_files

TRAIN, TEST, WARM_UP, BETWEEN = 500, 1000, 500, 10  # frames, and steps of half a femtosecond
KELVIN = 500


def trajectory() -> list[Atoms]:
    """The frames, in the order in which they are dealt out."""
    from tblite.ase import TBLite

    atoms, rng = molecule("CH3CH2OH"), np.random.default_rng(0)
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=KELVIN, rng=rng)
    dynamics = Langevin(atoms, 0.5 * units.fs, temperature_K=KELVIN, friction=0.01 / units.fs, rng=rng)
    dynamics.run(WARM_UP)
    frames = []
    for _ in range(TRAIN + TEST):
        dynamics.run(BETWEEN)
        frame = Atoms(atoms.symbols, atoms.positions)
        frame.calc = SinglePointCalculator(frame, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
        frames.append(frame)
    return [frames[place] for place in rng.permutation(len(frames))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/one-molecule"))
    parser.add_argument("settings", nargs="*")
    arguments = parser.parse_args()
    known, others, directory = (arguments.output / name for name in ("train.extxyz", "test.extxyz", "run"))
    if not (known.exists() and others.exists()):
        arguments.output.mkdir(parents=True, exist_ok=True)
        frames = trajectory()
        write(known, frames[:TRAIN])
        write(others, frames[TRAIN:])
    begin = ["train", f"data.train={known}", f"run.dir={directory}"]
    train(1, [*(["resume", str(directory)] if directory.exists() else begin), *arguments.settings])
    errors = evaluate_files(directory, [others], None)["tasks"]["default"]
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    print(json.dumps({
        "machine": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "minutes": lines[-1]["seconds"] / 60, "steps": lines[-1]["step"], "errors": errors,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
