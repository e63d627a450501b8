"""Ionic crystals: rock salt, fluorite, antifluorite, rutile, perovskite and spinel, pure and with mixed cations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.build import make_supercell
from ase.spacegroup import crystal
from drafts import Group, displaced, round_structure, strained, with_state
from numpy.random import Generator
from rigid_ions import rigid_ion_energy

TASK = "ionic"

# Share of the formal charge that an ion of a compound with this anion carries: energies then have the size of cohesive energies.
IONICITY = {"O": 0.55, "F": 0.9, "Cl": 0.9}
VALENCE = {"O": -2, "F": -1, "Cl": -1}
# Å, after R. D. Shannon, Acta Cryst. A 32, 751 (1976), six neighbours; by element and formal charge.
RADII = {
    ("Li", 1): 0.76, ("Na", 1): 1.02, ("K", 1): 1.38, ("Mg", 2): 0.72, ("Ca", 2): 1.00, ("Sr", 2): 1.18, ("Ba", 2): 1.35,
    ("Zn", 2): 0.74, ("V", 2): 0.79, ("Mn", 2): 0.83, ("Fe", 2): 0.78, ("Co", 2): 0.745, ("Al", 3): 0.535, ("V", 3): 0.64,
    ("Cr", 3): 0.615, ("Fe", 3): 0.645, ("Co", 3): 0.545, ("Ti", 4): 0.605, ("V", 4): 0.58, ("Cr", 4): 0.55, ("Mn", 4): 0.53,
    ("Zr", 4): 0.72, ("Sn", 4): 0.69, ("Ce", 4): 0.87, ("O", -2): 1.40, ("F", -1): 1.33, ("Cl", -1): 1.81,
}  # fmt: skip

# Cations and anion of each compound, by prototype.
COMPOUNDS = {
    "rocksalt": "Mg-O Ca-O Sr-O Ba-O V-O Mn-O Fe-O Co-O Li-F Na-F K-F Li-Cl Na-Cl K-Cl",
    "fluorite": "Ca-F Sr-F Ba-F Zr-O Ce-O",
    "antifluorite": "Li-O Na-O K-O",
    "rutile": "Ti-O V-O Cr-O Mn-O Sn-O Mg-F Zn-F Mn-F Fe-F Co-F",
    "perovskite": "Ca-Ti-O Sr-Ti-O Ba-Ti-O Sr-Zr-O Ba-Zr-O Ca-Sn-O Ba-Sn-O Na-Mg-F K-Mg-F K-Zn-F K-Mn-F",
    "spinel": "Mg-Al-O Zn-Al-O Fe-Al-O Mg-Cr-O Zn-Cr-O Mg-Fe-O Zn-Fe-O Mg-V-O Co-Co-O",
}
FORMAL = {  # of the cations, with an oxide or with a halide
    "rocksalt": {"O": (2,), "F": (1,), "Cl": (1,)},
    "fluorite": {"O": (4,), "F": (2,)},
    "antifluorite": {"O": (1,)},
    "rutile": {"O": (4,), "F": (2,)},
    "perovskite": {"O": (2, 4), "F": (1, 2)},
    "spinel": {"O": (2, 3)},
}
SUPERCELLS = {  # repetitions of the cell that `_prototype` makes
    "rocksalt": [(1, 1, 1), (1, 1, 2)],
    "fluorite": [(1, 1, 1)],
    "antifluorite": [(1, 1, 1)],
    "rutile": [(1, 1, 1), (1, 1, 2), (1, 2, 1)],
    "perovskite": [(1, 1, 2), (1, 2, 1), (1, 2, 2)],
    "spinel": [(1, 1, 1)],
}
DRAWS = 4


def groups() -> list[Group]:
    """Four draws of every compound; in the last one some cations are replaced by others of the same charge."""
    return [
        Group(
            f"{prototype}/{compound}/{draw}",
            lambda rng, prototype=prototype, compound=compound, mixed=draw == DRAWS - 1: _crystal(
                prototype, compound.split("-"), mixed, rng
            ),
            _frame,
        )
        for prototype, compounds in COMPOUNDS.items()
        for compound in compounds.split()
        for draw in range(DRAWS)
    ]


def _crystal(prototype: str, names: Sequence[str], mixed: bool, rng: Generator) -> Atoms:
    *cations, anion = names
    formal = [*FORMAL[prototype][anion], VALENCE[anion]]
    # Fictitious species mark the sites, so that one element can sit on two of them with two charges.
    sites = _prototype(prototype)
    choices = SUPERCELLS[prototype]
    sites = sites.repeat(choices[rng.integers(len(choices))])
    ions = [(names[site], formal[site]) for site in sites.get_tags()]
    if mixed:
        ions = [_substituted(ion, prototype, cations, anion, rng) for ion in ions]
    atoms = Atoms([element for element, _ in ions], positions=sites.positions, cell=sites.cell, pbc=True)
    atoms.set_array("ion_charges", np.array([IONICITY[anion] * charge for _, charge in ions]))
    atoms.set_array("ion_radii", np.array([RADII[ion] for ion in ions]))
    bare = with_state(_relaxed_volume(atoms))
    for name in ("ion_charges", "ion_radii"):
        bare.set_array(name, atoms.arrays[name])
    return displaced(strained(bare, rng, (-7.0, 9.0), 0.015), rng, 0.03)


def _substituted(
    ion: tuple[str, int], prototype: str, cations: Sequence[str], anion: str, rng: Generator
) -> tuple[str, int]:
    """The ion or, half of the time, another cation of its charge that also forms this prototype with this anion."""
    _, charge = ion
    if charge < 0 or rng.random() < 0.5:
        return ion
    compounds = (compound.split("-") for compound in COMPOUNDS[prototype].split())
    others = {
        element
        for *elements, other_anion in compounds
        if other_anion == anion
        for element, other_charge in zip(elements, FORMAL[prototype][anion], strict=True)
        if other_charge == charge and abs(RADII[element, charge] - RADII[ion]) < 0.25
    }
    return (sorted(others)[rng.integers(len(others))], charge)


def _relaxed_volume(atoms: Atoms) -> Atoms:
    """The structure scaled to vanishing pressure: Newton's method on dE/d ln(length), slope by differences."""
    log_length = 0.0
    for _ in range(30):
        slope = _length_derivative(atoms, log_length)
        curvature = (_length_derivative(atoms, log_length + 1e-4) - slope) / 1e-4
        step = -slope / curvature if curvature > 0 else -np.sign(slope) * 0.05
        log_length += float(np.clip(step, -0.05, 0.05))
        if abs(step) < 1e-6:
            return _scaled(atoms, log_length)
    raise RuntimeError(f"{atoms.get_chemical_formula()}: no volume of vanishing pressure found")


def _length_derivative(atoms: Atoms, log_length: float) -> float:
    scaled = _scaled(atoms, log_length)
    stress = rigid_ion_energy(scaled, atoms.arrays["ion_charges"], atoms.arrays["ion_radii"])[2]
    return float(np.trace(stress)) * scaled.get_volume()


def _scaled(atoms: Atoms, log_length: float) -> Atoms:
    scaled = atoms.copy()
    scaled.set_cell(atoms.cell.array * np.exp(log_length), scale_atoms=True)
    return scaled


def _prototype(name: str) -> Atoms:
    """The cell of a prototype; tags number its sites in the order of the compound's name."""
    symbols: Sequence[str]
    if name == "rocksalt":
        symbols, basis, group, cell = ("Na", "Cl"), [(0, 0, 0), (0.5, 0.5, 0.5)], 225, [5.0] * 3
    elif name == "fluorite":
        symbols, basis, group, cell = ("Ca", "F"), [(0, 0, 0), (0.25, 0.25, 0.25)], 225, [5.4] * 3
    elif name == "antifluorite":
        symbols, basis, group, cell = ("Li", "O"), [(0.25, 0.25, 0.25), (0, 0, 0)], 225, [5.0] * 3
    elif name == "rutile":
        symbols, basis, group, cell = ("Ti", "O"), [(0, 0, 0), (0.305, 0.305, 0)], 136, [4.6, 4.6, 3.0]
    elif name == "perovskite":
        symbols, basis, group, cell = ("Ca", "Ti", "O"), [(0.5, 0.5, 0.5), (0, 0, 0), (0.5, 0, 0)], 221, [3.9] * 3
    else:
        symbols, basis = ("Mg", "Al", "O"), [(0.125, 0.125, 0.125), (0.5, 0.5, 0.5), (0.2625, 0.2625, 0.2625)]
        group, cell = 227, [8.1] * 3
    setting = 2 if name == "spinel" else 1
    atoms = crystal(symbols, basis, spacegroup=group, setting=setting, cellpar=[*cell, 90, 90, 90])
    atoms.set_tags([symbols.index(symbol) for symbol in atoms.get_chemical_symbols()])
    if name == "spinel":
        atoms = make_supercell(atoms, 0.5 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]))
    return round_structure(atoms)


def _frame(base: Atoms, rng: Generator) -> Atoms:
    return displaced(base, rng, rng.uniform(0.02, 0.08))
