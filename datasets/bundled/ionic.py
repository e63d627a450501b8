"""Ionic crystals with a rigid-ion model: point charges (Ewald summation) and exponential repulsion.

Energies, forces and stress are analytic: P. P. Ewald, Ann. Phys. 369, 253 (1921); Born-Mayer repulsion with radii in
the exponent after Gilbert, J. Chem. Phys. 49, 2640 (1968). Charges are 0.7 of the formal ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from ase.spacegroup import crystal
from frames import Frame, Labels, labelled
from scipy.optimize import minimize_scalar
from scipy.special import erfc

COULOMB = 14.399645  # e²/(4πε₀), eV Å
CHARGE_FRACTION = 0.7
FORMAL_CHARGES = {"Li": 1, "Na": 1, "K": 1, "Mg": 2, "Ca": 2, "Sr": 2, "Ba": 2, "Al": 3, "Ti": 4,
                  "O": -2, "F": -1, "Cl": -1, "Br": -1}  # fmt: skip
# Crystal radii of Shannon, Acta Cryst. A32, 751 (1976), six-fold coordination, Å.
RADII = {"Li": 0.90, "Na": 1.16, "K": 1.52, "Mg": 0.86, "Ca": 1.14, "Sr": 1.32, "Ba": 1.49, "Al": 0.675, "Ti": 0.745,
         "O": 1.26, "F": 1.19, "Cl": 1.67, "Br": 1.82}  # fmt: skip
REPULSION = 0.25  # eV where two ions touch
STEEPNESS = 0.33  # Å
ALPHA = 0.45  # Ewald splitting, 1/Å
REAL_CUTOFF = 12.0  # Å; erfc(0.45 · 12) = 2e-14
RECIPROCAL_CUTOFF = 5.4  # 1/Å; exp(-5.4² / 4 · 0.45²) = 2e-16

ROCKSALT = ("LiF", "LiCl", "NaF", "NaCl", "KF", "KCl", "KBr", "NaBr", "MgO", "CaO", "SrO", "BaO")
FLUORITE = ("CaF2", "SrF2", "BaF2")
RUTILE = ("TiO2", "MgF2")
PEROVSKITE = ("SrTiO3", "CaTiO3", "BaTiO3", "KMgF3", "NaMgF3")
SPINEL = ("MgAl2O4",)
FRAMES_EACH = {"rocksalt": 16, "fluorite": 20, "rutile": 22, "perovskite": 18, "spinel": 24}


def label(atoms: Atoms) -> Labels:
    """Energy, forces and stress of a periodic, neutral crystal of known ions."""
    charges = CHARGE_FRACTION * np.array([FORMAL_CHARGES[symbol] for symbol in atoms.get_chemical_symbols()])
    real_energy, real_forces, real_virial = _real_space(atoms, charges)
    energy, forces, virial = _reciprocal_space(atoms, charges)
    own = -COULOMB * ALPHA / np.sqrt(np.pi) * np.sum(charges**2)
    volume = atoms.get_volume()
    return real_energy + energy + own, real_forces + forces, (real_virial + virial) / volume


def _real_space(atoms: Atoms, charges: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    i, j, r, vector = neighbor_list("ijdD", atoms, REAL_CUTOFF)
    radii = np.array([RADII[symbol] for symbol in atoms.get_chemical_symbols()])
    product = COULOMB * charges[i] * charges[j]
    screened = product * erfc(ALPHA * r) / r
    gauss = product * 2 * ALPHA / np.sqrt(np.pi) * np.exp(-((ALPHA * r) ** 2))
    repulsion = REPULSION * np.exp((radii[i] + radii[j] - r) / STEEPNESS)
    slope = -(screened + gauss) / r - repulsion / STEEPNESS
    # Each pair is listed twice, so halves; the force on i is −∂E/∂x_i, and r grows when j moves along +vector.
    pull = (slope / r)[:, None] * vector
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, i, pull)
    return 0.5 * float(np.sum(screened + repulsion)), forces, 0.5 * np.einsum("ka,kb->ab", pull, vector)


def _reciprocal_space(atoms: Atoms, charges: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    reciprocal = 2 * np.pi * np.linalg.inv(atoms.cell.array).T
    # |k| of index n along a row is at least n times the distance between lattice planes of the direct cell's dual.
    limits = np.ceil(RECIPROCAL_CUTOFF * np.linalg.norm(atoms.cell.array, axis=1) / (2 * np.pi)).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in limits), indexing="ij"), axis=-1).reshape(-1, 3)
    k = grid[np.any(grid != 0, axis=1)] @ reciprocal
    k = k[np.linalg.norm(k, axis=1) < RECIPROCAL_CUTOFF]
    square = np.sum(k**2, axis=1)
    phase = np.exp(1j * k @ atoms.positions.T)
    structure_factor = phase @ charges
    weight = 2 * np.pi * COULOMB / atoms.get_volume() * np.exp(-square / (4 * ALPHA**2)) / square
    terms = weight * np.abs(structure_factor) ** 2
    slope = 2 * weight[:, None] * np.imag(np.conj(structure_factor)[:, None] * phase)
    forces = charges[:, None] * np.einsum("kn,ka->na", slope, k)
    stretch = 2 * terms * (1 / square + 1 / (4 * ALPHA**2))
    virial = np.einsum("k,ka,kb->ab", stretch, k, k) - np.eye(3) * terms.sum()
    return float(terms.sum()), forces, virial


def _prototype(kind: str, formula: str) -> Atoms:
    """The ideal crystal at a guessed size; ions are named in the order of the formula."""
    symbols = list(dict.fromkeys(Atoms(formula).get_chemical_symbols()))
    if kind == "rocksalt":
        return crystal(symbols, [(0, 0, 0), (0.5, 0.5, 0.5)], spacegroup=225, cellpar=[5.0] * 3 + [90] * 3)
    if kind == "fluorite":
        return crystal(symbols, [(0, 0, 0), (0.25, 0.25, 0.25)], spacegroup=225, cellpar=[5.5] * 3 + [90] * 3)
    if kind == "rutile":
        return crystal(symbols, [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.6, 4.6, 2.96] + [90] * 3)
    if kind == "perovskite":
        sites = [(0.5, 0.5, 0.5), (0, 0, 0), (0.5, 0, 0)]
        return crystal(symbols, sites, spacegroup=221, cellpar=[4.0] * 3 + [90] * 3)
    sites = [(0.125, 0.125, 0.125), (0.5, 0.5, 0.5), (0.262, 0.262, 0.262)]
    return crystal(symbols, sites, spacegroup=227, setting=2, cellpar=[8.1] * 3 + [90] * 3, primitive_cell=True)


def _at_equilibrium(atoms: Atoms) -> Atoms:
    """The crystal scaled to the volume of lowest energy in this model."""

    def scaled(factor: float) -> Atoms:
        copy = atoms.copy()
        copy.set_cell(atoms.cell * factor, scale_atoms=True)
        return copy

    best = minimize_scalar(lambda factor: label(scaled(factor))[0], bounds=(0.75, 1.35), method="bounded")
    return scaled(float(best.x))


def frames(seed: np.random.SeedSequence) -> Iterator[Frame]:
    """Strained and rattled crystals of every prototype, some of them doubled along one axis."""
    kinds = {"rocksalt": ROCKSALT, "fluorite": FLUORITE, "rutile": RUTILE, "perovskite": PEROVSKITE, "spinel": SPINEL}
    compounds = [(kind, formula) for kind, formulas in kinds.items() for formula in formulas]
    for (kind, formula), child in zip(compounds, seed.spawn(len(compounds)), strict=True):
        ideal = _at_equilibrium(_prototype(kind, formula))
        for number, own in enumerate(child.spawn(FRAMES_EACH[kind])):
            rng = np.random.default_rng(own)
            atoms = ideal.copy()
            if kind in ("rutile", "perovskite") and number % 3 == 0:
                repeats = [1, 1, 1]
                repeats[int(rng.integers(3))] = 2
                atoms = atoms.repeat(repeats)
            strain = rng.normal(0, 0.02, (3, 3)) + np.eye(3) * rng.uniform(-0.04, 0.05)
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
            atoms.positions += rng.normal(0, rng.uniform(0.02, 0.14), atoms.positions.shape)
            frame = labelled(atoms, label, "ionic", f"{kind}-{formula}-{number}")
            if frame is not None:
                yield frame
