"""Relaxations as benchmarks want them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase import Atoms


def relaxed(calculator: Any, atoms: Atoms, fmax: float = 0.05, steps: int = 500) -> Atoms:
    """A relaxed copy of a structure, by FIRE: its positions, and its cell where it repeats in all three directions.

    Ends when the largest force (for crystals also the largest stress times the volume) is below `fmax`, eV/Å, or after
    so many steps, as Matbench-Discovery does it. The calculator stays with the copy.
    """
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE

    found = atoms.copy()
    found.calc = calculator
    FIRE(FrechetCellFilter(found) if found.pbc.all() else found, logfile=None).run(fmax=fmax, steps=steps)
    return found
