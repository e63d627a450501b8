"""Energy over volume, and the Birch-Murnaghan equation through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.units import GPa
from jaxtyping import Float64


class BirchMurnaghan(NamedTuple):
    """Third-order Birch-Murnaghan equation of state (F. Birch, Phys. Rev. 71, 809 (1947)).

    Attributes:
        volume: where the energy is lowest, in the unit of the volumes.
        energy: there, in the unit of the energies.
        bulk_modulus: there, energy over volume.
        derivative: of the bulk modulus by the pressure.
        residual: root mean square distance of the energies from the curve.
    """

    volume: float
    energy: float
    bulk_modulus: float
    derivative: float
    residual: float


@dataclass(frozen=True, eq=False)
class EquationOfState:
    """Energies of a crystal at several volumes.

    Attributes:
        volumes: Å³ per atom, ascending.
        energies: eV per atom.
        volume: V0, Å³ per atom.
        energy: E0, eV per atom.
        bulk_modulus: B0, GPa.
        derivative: B0', no unit.
        residual: root mean square distance of the energies from the curve, eV per atom.
    """

    volumes: Float64[np.ndarray, "points"]
    energies: Float64[np.ndarray, "points"]
    volume: float
    energy: float
    bulk_modulus: float
    derivative: float
    residual: float


def equation_of_state(
    calculator: Any, atoms: Atoms, span: float = 0.06, points: int = 9, relax_positions: bool = True
) -> EquationOfState:
    """The equation of state of a crystal whose cell changes its size and keeps its shape.

    Args:
        calculator: an ASE calculator with energy and forces.
        atoms: a crystal near its equilibrium; it is not changed.
        span: volumes go from 1 − span to 1 + span of the given one.
        points: how many, at least five.
        relax_positions: whether atoms may move inside the cell, as they do in an experiment.

    Raises:
        ValueError: not a crystal, or no minimum among the volumes.
    """
    from ase.optimize import BFGS

    if not atoms.pbc.all():
        raise ValueError(f"an equation of state needs a crystal; here pbc is {atoms.pbc.tolist()}")
    ratios = np.linspace(1 - span, 1 + span, points)
    energies = np.empty(points)
    for place, ratio in enumerate(ratios):
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell.array * ratio ** (1 / 3), scale_atoms=True)
        scaled.calc = calculator
        if relax_positions and len(scaled) > 1:
            BFGS(scaled, logfile=None, maxstep=0.1).run(fmax=0.005, steps=50)
        energies[place] = scaled.get_potential_energy() / len(atoms)
    volumes = ratios * atoms.get_volume() / len(atoms)
    fit = fit_birch_murnaghan(volumes, energies)
    return EquationOfState(
        volumes, energies, fit.volume, fit.energy, fit.bulk_modulus / GPa, fit.derivative, fit.residual
    )


def fit_birch_murnaghan(
    volumes: Float64[np.ndarray, "points"], energies: Float64[np.ndarray, "points"]
) -> BirchMurnaghan:
    """The third-order Birch-Murnaghan equation through these points, by linear least squares.

    E(V) is a cubic polynomial of V^(−2/3), so the fit has one answer and needs no start.

    Raises:
        ValueError: fewer than five points, or no minimum between the smallest and the largest volume.
    """
    if len(volumes) < 5:
        raise ValueError(f"{len(volumes)} volumes; a fit of four numbers needs at least five")
    middle = float(np.mean(volumes))
    curve = np.polynomial.Polynomial.fit((volumes / middle) ** (-2 / 3), energies, 3)
    slope, bend = curve.deriv(1), curve.deriv(2)
    low, high = sorted((float(volumes[0] / middle) ** (-2 / 3), float(volumes[-1] / middle) ** (-2 / 3)))
    minima = [
        float(root.real)
        for root in slope.roots()
        if abs(root.imag) < 1e-9 and low <= root.real <= high and bend(root.real) > 0
    ]
    if not minima:
        raise ValueError(f"no minimum of the energy between {volumes.min():.3f} and {volumes.max():.3f} Å³ per atom")
    x = minima[0]
    volume = middle * x**-1.5
    # With x = V^(−2/3): dx/dV = −2x/(3V), d²x/dV² = 10x/(9V²), d³x/dV³ = −80x/(27V³); the slope in x is zero here.
    first, second, third = -2 * x / (3 * volume), 10 * x / (9 * volume**2), float(curve.deriv(3)(x))
    curvature = float(bend(x)) * first**2
    change = third * first**3 + 3 * float(bend(x)) * first * second
    return BirchMurnaghan(
        volume=volume,
        energy=float(curve(x)),
        bulk_modulus=volume * curvature,
        derivative=-1 - volume * change / curvature,
        residual=float(np.sqrt(np.mean((curve((volumes / middle) ** (-2 / 3)) - energies) ** 2))),
    )
