"""Whether a trained potential keeps the energy: NVE over 10 ps at 1 fs, of a crystal and of a molecule, in float64.

Arguments: a run directory (without one the default run is trained first), and `--picoseconds`.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

from matris_model import MatRISCalculator

TEMPERATURE = 300.0  # K
STEP = 1.0  # fs
LARGEST_DRIFT = 0.1  # meV/atom/ps


def systems() -> dict[str, tuple[str, Atoms]]:
    """What is let go, and under which task of the bundled data set."""
    return {
        "Cu32": ("metals", bulk("Cu", "fcc", a=3.61, cubic=True).repeat((2, 2, 2))),
        "CH3CH2OH": ("molecules", molecule("CH3CH2OH")),
    }


def drift(path: Path, task: str, atoms: Atoms, picoseconds: float) -> dict[str, float]:
    """Total energy per atom along one trajectory: slope of a straight line through it, and the scatter around that."""
    atoms.calc = MatRISCalculator(path, task=task, dtype=torch.float64)
    FIRE(atoms, logfile=None).run(fmax=0.02, steps=500)
    rng = np.random.default_rng(0)
    # Half of the kinetic energy goes into the potential, so the temperature ends at about the one that is wanted.
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * TEMPERATURE, rng=rng)
    Stationary(atoms)
    if not atoms.pbc.any():
        ZeroRotation(atoms)
    energies, temperatures = [], []

    def record() -> None:
        energies.append(atoms.get_total_energy() / len(atoms))
        temperatures.append(atoms.get_temperature())

    dynamics = VelocityVerlet(atoms, timestep=STEP * units.fs)
    dynamics.attach(record)
    began = time.perf_counter()
    dynamics.run(round(1000 * picoseconds / STEP))
    seconds = time.perf_counter() - began
    times = STEP * np.arange(len(energies)) / 1000
    slope, start = np.polyfit(times, energies, 1)
    scatter = np.array(energies) - (start + slope * times)
    return {
        "atoms": len(atoms), "picoseconds": picoseconds, "drift_meV_per_atom_ps": 1000 * float(slope),
        "rms_meV_per_atom": 1000 * float(np.sqrt(np.mean(scatter**2))),
        "mean_temperature_K": float(np.mean(temperatures[len(temperatures) // 10 :])),
        "seconds_per_step": seconds / dynamics.nsteps,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, help="directory of a trained run")
    parser.add_argument("--picoseconds", type=float, default=10.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run or trained(Path(folder) / "run")
        results = {name: drift(run, task, atoms, arguments.picoseconds) for name, (task, atoms) in systems().items()}
    holds = all(abs(result["drift_meV_per_atom_ps"]) < LARGEST_DRIFT for result in results.values())
    print(json.dumps({"timestep_fs": STEP, "systems": results, "gate_meV_per_atom_ps": LARGEST_DRIFT, "holds": holds}))


def trained(path: Path) -> Path:
    from janus_train import load_config, train
    from janus_train.recipes.matris import matris_recipe

    return train(load_config(None, [f"run.dir={path}"]), matris_recipe)


if __name__ == "__main__":
    main()
