"""Dynamics at constant energy, which only exact and smooth forces keep constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from jaxtyping import Float64

# Points of the curve that are kept.
_SAMPLES = 200


@dataclass(frozen=True, eq=False)
class ConstantEnergyRun:
    """A run at constant energy.

    Attributes:
        times: ps.
        energies: potential plus kinetic, less that at the start, meV per atom.
        drift: slope of the straight line through them, meV per atom and ps.
        fluctuation: root mean square distance from that line, meV per atom.
        temperature: mean over the second half, K.
        timestep: fs.
        atoms: how many.
    """

    times: Float64[np.ndarray, "samples"]
    energies: Float64[np.ndarray, "samples"]
    drift: float
    fluctuation: float
    temperature: float
    timestep: float
    atoms: int


def constant_energy_run(
    calculator: Any,
    atoms: Atoms,
    picoseconds: float = 1.0,
    timestep: float = 1.0,
    temperature: float = 600.0,
    seed: int = 0,
) -> ConstantEnergyRun:
    """Velocity Verlet from a structure with thermal velocities and no total momentum.

    Args:
        calculator: an ASE calculator with energy and forces.
        atoms: where to start; it is not changed. From a minimum, half the kinetic energy becomes potential.
        picoseconds: how long, rounded to whole steps.
        timestep: fs.
        temperature: of the velocities at the start, K.
        seed: the same gives the same velocities.

    Raises:
        ValueError: less than two steps.
        RuntimeError: a structure that blows up.
    """
    from ase.md.verlet import VelocityVerlet

    steps = round(1000 * picoseconds / timestep)
    if steps < 2:
        raise ValueError(f"{picoseconds} ps are {steps} steps of {timestep} fs; a drift needs at least two")
    moving = atoms.copy()
    moving.calc = calculator
    moving.set_velocities(_thermal_velocities(atoms, temperature, seed))
    every = max(1, steps // _SAMPLES)
    rows: list[tuple[float, float, float]] = []

    def sample() -> None:
        rows.append((dynamics.get_time() / (1000 * units.fs), moving.get_total_energy(), moving.get_temperature()))
        if not np.isfinite(rows[-1]).all() or rows[-1][2] > 100 * max(temperature, 300.0):
            raise RuntimeError(f"the structure blew up after {rows[-1][0]:.3f} ps")

    dynamics = VelocityVerlet(moving, timestep=timestep * units.fs)
    dynamics.attach(sample, interval=every)
    dynamics.run(steps)
    times, energies, temperatures = np.array(rows).T
    energies = 1000 * (energies - energies[0]) / len(atoms)
    slope, start = np.polyfit(times, energies, 1)
    return ConstantEnergyRun(
        times=times,
        energies=energies,
        drift=float(slope),
        fluctuation=float(np.sqrt(np.mean((energies - slope * times - start) ** 2))),
        temperature=float(temperatures[len(rows) // 2 :].mean()),
        timestep=timestep,
        atoms=len(atoms),
    )


def _thermal_velocities(atoms: Atoms, temperature: float, seed: int) -> Float64[np.ndarray, "atoms 3"]:
    masses = atoms.get_masses()[:, None]
    velocities = np.random.default_rng(seed).normal(size=(len(atoms), 3)) * np.sqrt(units.kB * temperature / masses)
    still: np.ndarray = velocities - (masses * velocities).sum(axis=0) / masses.sum()
    return still
