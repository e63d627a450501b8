"""Metals, alloys, vacancies and slabs with adsorbates, labelled by effective-medium theory as ASE implements it.

EMT: Jacobsen, Stoltze and Nørskov, Surf. Sci. 366, 394 (1996).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc100, fcc110, fcc111, molecule
from ase.calculators.emt import EMT
from frames import Frame, Labels, labelled

METALS = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au")
LATTICE = {"Al": 4.00, "Ni": 3.49, "Cu": 3.59, "Pd": 3.88, "Ag": 4.06, "Pt": 3.92, "Au": 4.06}  # Å, near EMT's minimum
ADSORBATES = ("H", "C", "N", "O", "CO", "OH")
PURE_FRAMES, ALLOY_FRAMES, VACANCY_FRAMES, SURFACE_FRAMES = 15, 150, 90, 400


def label(atoms: Atoms) -> Labels:
    """Energy, forces, and stress where all three directions repeat."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    return energy, forces, atoms.get_stress(voigt=False) if atoms.pbc.all() else None


def _disturbed(atoms: Atoms, rng: np.random.Generator, strain: float, rattle: float) -> Atoms:
    deformation = rng.normal(0, strain, (3, 3))
    deformation = (deformation + deformation.T) / 2 + np.eye(3) * rng.uniform(-2 * strain, 2 * strain)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + deformation), scale_atoms=True)
    atoms.positions += rng.normal(0, rng.uniform(0.02, rattle), atoms.positions.shape)
    return atoms


def metal_frames(seed: np.random.SeedSequence) -> Iterator[Frame]:
    """Bulk metals: pure, random alloys, with vacancies; strained and rattled."""
    pure, alloys, vacancies = seed.spawn(3)
    for symbol, child in zip(METALS, pure.spawn(len(METALS)), strict=True):
        for number, own in enumerate(child.spawn(PURE_FRAMES)):
            rng = np.random.default_rng(own)
            atoms = bulk(symbol, "fcc", a=LATTICE[symbol], cubic=True)
            yield from _one(_disturbed(atoms, rng, 0.025, 0.20), f"pure-{symbol}-{number}")
    for number, own in enumerate(alloys.spawn(ALLOY_FRAMES)):
        rng = np.random.default_rng(own)
        chosen = rng.choice(METALS, size=int(rng.integers(2, 4)), replace=False)
        shape = ((2, 1, 1), (1, 1, 1), (1, 1, 2))[number % 3]
        atoms = bulk("Cu", "fcc", a=1.0, cubic=True).repeat(shape)
        atoms.set_chemical_symbols(rng.choice(chosen, size=len(atoms)))
        size = np.mean([LATTICE[symbol] for symbol in atoms.get_chemical_symbols()])
        atoms.set_cell(atoms.cell.array * size, scale_atoms=True)
        yield from _one(_disturbed(atoms, rng, 0.025, 0.20), f"alloy-{number}")
    for number, own in enumerate(vacancies.spawn(VACANCY_FRAMES)):
        rng = np.random.default_rng(own)
        symbol = METALS[number % len(METALS)]
        atoms = bulk(symbol, "fcc", a=LATTICE[symbol], cubic=True).repeat((2, 2, 1) if number % 2 else (2, 1, 1))
        del atoms[int(rng.integers(len(atoms)))]
        yield from _one(_disturbed(atoms, rng, 0.015, 0.18), f"vacancy-{symbol}-{number}")


def surface_frames(seed: np.random.SeedSequence) -> Iterator[Frame]:
    """Slabs of three faces with one adsorbate, or clean, at random heights and sites."""
    faces = {"111": fcc111, "100": fcc100, "110": fcc110}
    for number, own in enumerate(seed.spawn(SURFACE_FRAMES)):
        rng = np.random.default_rng(own)
        symbol = METALS[number % len(METALS)]
        face = list(faces)[int(rng.integers(3))]
        size = (2, 2, 3) if face != "110" else (2, 1, 4)
        slab = faces[face](symbol, size=size, a=LATTICE[symbol] * rng.uniform(0.98, 1.02), vacuum=8.0)
        name = "clean" if rng.random() < 0.1 else str(rng.choice(ADSORBATES))
        if name != "clean":
            adsorbate = Atoms(name) if len(name) == 1 else molecule(name)
            adsorbate.rotate(rng.uniform(0, 40), (1, 0, 0))
            site = rng.random(2) @ slab.cell.array[:2, :2]
            add_adsorbate(slab, adsorbate, height=rng.uniform(1.1, 2.2), position=site)
        slab.pbc = (True, True, False)
        slab.positions += rng.normal(0, rng.uniform(0.02, 0.15), slab.positions.shape)
        frame = labelled(slab, label, "surfaces", f"{symbol}{face}-{name}-{number}")
        if frame is not None:
            yield frame


def _one(atoms: Atoms, group: str) -> Iterator[Frame]:
    frame = labelled(atoms, label, "metals", group)
    if frame is not None:
        yield frame
