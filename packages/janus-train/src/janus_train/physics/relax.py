"""The nearest minimum: of the positions, and of the cell where everything repeats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

# A cell that has grown or shrunk by more than this factor has left for somewhere else.
_FARTHEST = 1.5


@dataclass(frozen=True, eq=False)
class Relaxation:
    """How a relaxation ended.

    Attributes:
        atoms: the relaxed structure, without a calculator.
        converged: whether the largest force (and stress) came below what was asked.
        steps: of the optimiser.
        energy: eV per atom.
        largest_force: eV/Å.
        volume: Å³ per atom; None where not everything repeats.
        volume_change: of the cell, as a part of what it was; None where not everything repeats.
    """

    atoms: Atoms
    converged: bool
    steps: int
    energy: float
    largest_force: float
    volume: float | None
    volume_change: float | None


def relax(calculator: Any, atoms: Atoms, fmax: float = 0.005, steps: int = 200) -> Relaxation:
    """Relaxes a copy of a structure: its positions, and its cell where it repeats in all three directions.

    Args:
        calculator: an ASE calculator with energy and forces, and stress for crystals.
        atoms: where to start; it is not changed.
        fmax: the largest force to end with, eV/Å; for crystals also the largest stress times the volume.
        steps: at most.

    Raises:
        RuntimeError: a cell that grows or shrinks without end.
    """
    from ase.filters import FrechetCellFilter
    from ase.optimize import BFGS

    crystal = bool(atoms.pbc.all())
    found = atoms.copy()
    found.calc = calculator
    before = found.get_volume() if crystal else 1.0
    # A step of 0.1 Å, not of 0.2: learnt surfaces are rough, and starts are often far from any minimum.
    optimiser = BFGS(FrechetCellFilter(found) if crystal else found, logfile=None, maxstep=0.1)
    for _ in optimiser.irun(fmax=fmax, steps=steps):
        ratio = found.get_volume() / before if crystal else 1.0
        if not 1 / _FARTHEST < ratio < _FARTHEST:
            raise RuntimeError(f"the cell has come to {ratio:.2f} of its volume: no minimum is near")
    forces, energy = found.get_forces(), found.get_potential_energy() / len(found)
    converged = bool(optimiser.converged(optimiser.optimizable.get_gradient()))
    found.calc = None
    return Relaxation(
        atoms=found,
        converged=converged,
        steps=int(optimiser.nsteps),
        energy=float(energy),
        largest_force=float(np.linalg.norm(forces, axis=1).max()),
        volume=float(found.get_volume() / len(found)) if crystal else None,
        volume_change=float(found.get_volume() / before - 1) if crystal else None,
    )
