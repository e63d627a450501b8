"""Energy of rigid ions: Ewald's sum of their charges and a Born–Mayer repulsion, with exact derivatives.

E = ½ Σ_ijn [ k q_i q_j / r + b |q_i q_j| exp((R_i + R_j - r) / ρ) ], over all pairs of ions and their images, i itself left out
at n = 0. The first part is conditionally convergent and is summed after P. P. Ewald, Ann. Phys. 369, 253 (1921), for a
neutral cell in a conducting surrounding; the second is the repulsion of M. Born and J. E. Mayer, Z. Phys. 75, 1 (1932)
with ionic radii R in the exponent. Every truncation is below 1e-7 eV.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from ase.units import Bohr, Hartree
from scipy.special import erfc

COULOMB = Hartree * Bohr  # eV Å / e²
HARDNESS = 0.32  # ρ, Å
STRENGTH = 0.25  # b, eV / e²
CUTOFF = 9.0  # Å, of both sums over pairs
RANGE = 5.6  # erfc(5.6) = 2e-15
SPLITTING = RANGE / CUTOFF  # 1/Å
RECIPROCAL_CUTOFF = 2 * SPLITTING * RANGE  # 1/Å


def rigid_ion_energy(atoms: Atoms, charges: np.ndarray, radii: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy (eV), forces (N, 3) in eV/Å and stress (3, 3) in eV/Å^3, tension positive, of a periodic neutral cell."""
    if abs(charges.sum()) > 1e-9:
        raise ValueError(f"{atoms.get_chemical_formula()} carries {charges.sum()} e; a periodic cell must be neutral")
    pairs = _pairs(atoms, charges, radii)
    waves = _waves(atoms, charges)
    itself = -COULOMB * SPLITTING / np.sqrt(np.pi) * (charges**2).sum()
    return pairs[0] + waves[0] + itself, pairs[1] + waves[1], (pairs[2] + waves[2]) / atoms.get_volume()


def _pairs(atoms: Atoms, charges: np.ndarray, radii: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    i, j, distance, vector = neighbor_list("ijdD", atoms, CUTOFF)
    product = charges[i] * charges[j]
    scaled = SPLITTING * distance
    coulomb = COULOMB * product * erfc(scaled) / distance
    repulsion = STRENGTH * np.abs(product) * np.exp((radii[i] + radii[j] - distance) / HARDNESS)
    gaussian = COULOMB * product * 2 * SPLITTING / np.sqrt(np.pi) * np.exp(-(scaled**2))
    slope = -(coulomb + gaussian) / distance - repulsion / HARDNESS
    along = (slope / distance)[:, None] * vector
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, i, along)  # every pair is listed from both its ends
    return 0.5 * (coulomb + repulsion).sum(), forces, 0.5 * along.T @ vector


def _waves(atoms: Atoms, charges: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    volume = atoms.get_volume()
    reciprocal = 2 * np.pi * atoms.cell.reciprocal().array
    # |n_a| = |k · a| / 2π is at most |k| |a| / 2π.
    bounds = np.ceil(RECIPROCAL_CUTOFF * atoms.cell.lengths() / (2 * np.pi)).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in bounds), indexing="ij"), axis=-1).reshape(-1, 3)
    k = grid @ reciprocal
    square = (k**2).sum(axis=1)
    kept = (square > 1e-12) & (square < RECIPROCAL_CUTOFF**2)
    k, square = k[kept], square[kept]
    weight = 2 * np.pi * COULOMB / volume * np.exp(-square / (4 * SPLITTING**2)) / square
    phase = atoms.positions @ k.T
    cosine, sine = np.cos(phase), np.sin(phase)
    real, imaginary = charges @ cosine, charges @ sine
    terms = weight * (real**2 + imaginary**2)
    forces = 2 * charges[:, None] * ((weight * (sine * real - cosine * imaginary)) @ k)
    # Under a strain k·x stays and k changes by -εk, the volume by its trace.
    virial = np.einsum("k,ka,kb->ab", terms * 2 * (1 / square + 1 / (4 * SPLITTING**2)), k, k) - terms.sum() * np.eye(3)
    return terms.sum(), forces, virial
