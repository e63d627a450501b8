"""Two atoms and the distance between them: where a potential that has seen no such pair makes up the most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from jaxtyping import Float64

# No two atoms are bound at so small a part of the sum of their covalent radii (Cr2, the shortest, has 0.604).
_ALWAYS_REPULSIVE = 0.6

# Forces below this count as none when turns are counted, eV/Å.
_NO_FORCE = 0.01


@dataclass(frozen=True, eq=False)
class DimerCurve:
    """Energy and force of two atoms alone.

    Attributes:
        symbols: the two elements.
        distances: ascending, Å.
        energies: relative to the longest distance, eV.
        forces: along the bond, positive where the atoms push each other apart, eV/Å.
        bond_length: distance of the lowest energy, Å; None where that is the shortest or the longest one.
        depth: energy of the longest distance above the lowest, eV.
        hole_below: the longest distance, below 0.6 of the sum of the covalent radii, at which the atoms still attract
            each other: from there on they fall into each other. None where they repel as they should.
        turns: how often the force changes its sign; 1 for a single well, 0 for pure repulsion. More are barriers or
            ripples.
        tortuosity: Σ|ΔE| over that of a single well with the same ends and the same lowest energy; 1 for such a well
            or for pure repulsion.
    """

    symbols: tuple[str, str]
    distances: Float64[np.ndarray, "points"]
    energies: Float64[np.ndarray, "points"]
    forces: Float64[np.ndarray, "points"]
    bond_length: float | None
    depth: float
    hole_below: float | None
    turns: int
    tortuosity: float


def dimer_distances(symbols: tuple[str, str], longest: float, points: int = 48) -> Float64[np.ndarray, "points"]:
    """Distances from 0.4 of the sum of the covalent radii to the longest, Å, evenly."""
    return np.linspace(0.4 * _covalent_length(symbols), longest, points)


def dimer_curve(
    calculator: Any,
    symbols: tuple[str, str],
    distances: Float64[np.ndarray, "points"],
    info: dict[str, Any] | None = None,
) -> DimerCurve:
    """The curve of a pair of elements, and what is odd about it.

    Args:
        calculator: an ASE calculator with energy and forces.
        symbols: the two elements.
        distances: ascending, Å, at least three.
        info: charge, spin and the like, for `atoms.info`.
    """
    energies, forces = np.empty(len(distances)), np.empty(len(distances))
    pair = Atoms(symbols, positions=np.zeros((2, 3)), info=dict(info or {}))
    pair.calc = calculator
    for place, distance in enumerate(distances):
        pair.positions[1, 2] = distance
        energies[place] = pair.get_potential_energy()
        forces[place] = pair.get_forces()[1, 2]
    energies = energies - energies[-1]
    lowest = int(np.argmin(energies))
    near = distances < _ALWAYS_REPULSIVE * _covalent_length(symbols)
    falling = distances[near & (forces < 0)]
    signs = np.sign(forces[np.abs(forces) > _NO_FORCE])
    way = energies[0] + energies[-1] - 2 * energies[lowest]
    return DimerCurve(
        symbols=symbols,
        distances=distances,
        energies=energies,
        forces=forces,
        bond_length=float(distances[lowest]) if 0 < lowest < len(distances) - 1 else None,
        depth=float(-energies[lowest]),
        hole_below=float(falling.max()) if len(falling) else None,
        turns=int((signs[1:] != signs[:-1]).sum()),
        tortuosity=float(np.abs(np.diff(energies)).sum() / way) if way > 0 else 1.0,
    )


def _covalent_length(symbols: tuple[str, str]) -> float:
    return float(sum(covalent_radii[atomic_numbers[symbol]] for symbol in symbols))
