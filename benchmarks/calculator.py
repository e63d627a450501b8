"""What a step of dynamics costs through the ASE calculator, with and without a skin; prints JSON.

Structures are copper at 300 K, the model nano in float32 with random weights, on one thread. The kinds are
measured in turn, and the median of each is printed.
"""

import argparse
import json
import platform
import time
from statistics import median

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet

from matris_model import MatRISCalculator, MatRISMoE


def copper(atoms: int) -> Atoms:
    cells = {32: (2, 2, 2), 500: (5, 5, 5)}[atoms]
    crystal = bulk("Cu", "fcc", a=3.61, cubic=True) * cells
    velocities = np.random.default_rng(0).normal(size=(atoms, 3)) * np.sqrt(
        units.kB * 300 / crystal.get_masses()[:, None]
    )
    crystal.set_velocities(velocities)
    return crystal


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--steps", type=int, default=10)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    model = MatRISMoE.from_preset("nano")
    rows = []
    for atoms in (32, 500):
        runs = {}
        for skin in (0.0, 0.5):
            crystal = copper(atoms)
            crystal.calc = MatRISCalculator(model, skin=skin)
            runs[skin] = VelocityVerlet(crystal, timestep=2 * units.fs)
            runs[skin].run(2)
        times = {skin: [] for skin in runs}
        for _ in range(chosen.rounds):
            for skin, run in runs.items():
                began = time.perf_counter()
                run.run(chosen.steps)
                times[skin].append(1000 * (time.perf_counter() - began) / chosen.steps)
        rows += [{"atoms": atoms, "skin": skin, "ms_per_step": round(median(t), 2), "fastest": round(min(t), 2)}
                 for skin, t in times.items()]  # fmt: skip
    print(json.dumps({"machine": platform.processor(), "torch": torch.__version__, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
