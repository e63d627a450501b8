"""Elastic constants by finite strains, with the atoms inside the cell free to follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.units import GPa
from jaxtyping import Float64

# Modes softer than this part of the stiffest are taken for translations and for rounding, and do not follow a strain.
_SOFTEST = 1e-6


@dataclass(frozen=True, eq=False)
class ElasticConstants:
    """σ = C ε in Voigt's order xx, yy, zz, yz, xz, xy, with shears that count twice.

    Attributes:
        matrix: C with atoms that follow the strain, symmetric, GPa.
        clamped: C with atoms that only move with the cell, GPa.
        residual_stress: largest component of the stress at the start, GPa. The constants mean little where it is not
            small beside them.
        asymmetry: largest difference between C and its transpose, GPa; of the order of the error of the differences.
        bulk_modulus: after Voigt, GPa.
        shear_modulus: after Voigt, GPa.
        stable: whether every strain costs energy (M. Born: C is positive definite).
        cubic: C11, C12 and C44 as means over the axes where they agree to 5 % of C11 and the rest is as small, else
            None; GPa.
    """

    matrix: Float64[np.ndarray, "6 6"]
    clamped: Float64[np.ndarray, "6 6"]
    residual_stress: float
    asymmetry: float
    bulk_modulus: float
    shear_modulus: float
    stable: bool
    cubic: tuple[float, float, float] | None


def elastic_constants(
    calculator: Any, atoms: Atoms, strain: float = 0.005, displacement: float = 0.01
) -> ElasticConstants:
    """Elastic constants of a crystal by central differences of stress and forces.

    How far the atoms follow comes from their force constants K and the forces Λ that a strain calls up:
    C = C_clamped − Λᵀ K⁺ Λ / V (D. C. Wallace, Thermodynamics of Crystals, 1972). So no structure is relaxed.

    Args:
        calculator: an ASE calculator with stress and forces.
        atoms: a relaxed crystal; it is not changed.
        strain: size of the strains.
        displacement: of an atom, for the force constants, Å.

    Raises:
        ValueError: not a crystal.
    """
    if not atoms.pbc.all():
        raise ValueError(f"elastic constants need a crystal; here pbc is {atoms.pbc.tolist()}")
    clamped, followed = np.empty((6, 6)), np.empty((3 * len(atoms), 6))
    for component in range(6):
        stresses, forces = [], []
        for sign in (1, -1):
            strained = atoms.copy()
            voigt = np.zeros(6)
            voigt[component] = sign * strain
            strained.set_cell(atoms.cell.array @ _deformation(voigt), scale_atoms=True)
            strained.calc = calculator
            stresses.append(strained.get_stress())
            forces.append(strained.get_forces().ravel())
        clamped[:, component] = (stresses[0] - stresses[1]) / (2 * strain)
        followed[:, component] = (forces[0] - forces[1]) / (2 * strain)
    matrix = clamped
    if len(atoms) > 1:
        stiffness = force_constants(calculator, atoms, displacement)
        matrix = clamped - followed.T @ _pseudo_inverse(stiffness) @ followed / atoms.get_volume()
    start = atoms.copy()
    start.calc = calculator
    symmetric = (matrix + matrix.T) / 2 / GPa
    bulk, shear = _voigt_moduli(symmetric)
    return ElasticConstants(
        matrix=symmetric,
        clamped=(clamped + clamped.T) / 2 / GPa,
        residual_stress=float(np.abs(start.get_stress()).max() / GPa),
        asymmetry=float(np.abs(matrix - matrix.T).max() / GPa),
        bulk_modulus=bulk,
        shear_modulus=shear,
        stable=bool(np.linalg.eigvalsh(symmetric).min() > 0),
        cubic=_cubic(symmetric),
    )


def force_constants(calculator: Any, atoms: Atoms, displacement: float) -> Float64[np.ndarray, "3n 3n"]:
    """Second derivatives of the energy by the positions of the cell's atoms, eV/Å², by central differences."""
    count = 3 * len(atoms)
    stiffness = np.empty((count, count))
    moved = atoms.copy()
    moved.calc = calculator
    for place in range(count):
        forces = []
        for sign in (1, -1):
            positions = atoms.get_positions()
            positions.flat[place] += sign * displacement
            moved.set_positions(positions)
            forces.append(moved.get_forces().ravel())
        stiffness[place] = (forces[1] - forces[0]) / (2 * displacement)
    return (stiffness + stiffness.T) / 2


def _deformation(voigt: np.ndarray) -> np.ndarray:
    xx, yy, zz, yz, xz, xy = voigt
    return np.eye(3) + np.array([[xx, xy / 2, xz / 2], [xy / 2, yy, yz / 2], [xz / 2, yz / 2, zz]])


def _pseudo_inverse(stiffness: np.ndarray) -> np.ndarray:
    count = len(stiffness) // 3
    # Rigid translations cost nothing; rounding would give them a little.
    stays = np.eye(len(stiffness)) - np.tile(np.eye(3), (count, count)) / count
    values, vectors = np.linalg.eigh(stays @ stiffness @ stays)
    kept = np.abs(values) > _SOFTEST * np.abs(values).max()
    return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T


def _voigt_moduli(c: np.ndarray) -> tuple[float, float]:
    along, across, shears = np.trace(c[:3, :3]), c[0, 1] + c[1, 2] + c[0, 2], np.trace(c[3:, 3:])
    return float((along + 2 * across) / 9), float((along - across + 3 * shears) / 15)


def _cubic(c: np.ndarray) -> tuple[float, float, float] | None:
    c11, c44 = float(np.diag(c)[:3].mean()), float(np.diag(c)[3:].mean())
    c12 = float((c[0, 1] + c[1, 2] + c[0, 2]) / 3)
    ideal = np.diag([c11 - c12] * 3 + [c44] * 3)
    ideal[:3, :3] += c12
    return (c11, c12, c44) if np.abs(c - ideal).max() <= 0.05 * abs(c11) else None
