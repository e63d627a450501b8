"""Molecules, radicals, ions, excited spins, pairs of molecules and free atoms."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.data import atomic_numbers, vdw_radii
from drafts import Group, displaced, rotated, with_state
from numpy.random import Generator

TASK = "molecules"

# Multiplicities of the free atoms' ground states.
ATOMS = {"H": 2, "Li": 2, "Be": 1, "B": 2, "C": 3, "N": 4, "O": 3, "F": 2, "Na": 2, "Al": 2, "Si": 3, "P": 4, "S": 3, "Cl": 2}

NEUTRAL = """
    H2 LiH BeH Li2 Na2 LiF NaCl HF HCl N2 CO O2 F2 Cl2 ClF P2 S2 CS SO SiO CH NH OH SH CN NO ClO H2O SH2 NH2 PH2 CH2_s3B1d CH2_s1A1d
    SiH2_s1A1d SiH2_s3B1d CH3 SiH3 NH3 PH3 CH4 SiH4 C2H2 C2H4 C2H6 HCN HCO H2CO CH3OH N2H4 H2O2 CO2 CS2 OCS N2O SO2 O3 NO2 HOCl ClNO
    F2O BF3 BCl3 AlF3 AlCl3 CF4 CCl4 SiF4 SiCl4 NF3 PF3 ClF3 COF2 C2F4 C2Cl4 Si2H6 CH3Cl CH3SH CH3SiH3 H2CF2 HCCl3 NCCN CH3CN
    HCOOH H2CCO CH3CHO OCHCHO CH3NO2 H3CNH2 CH2OCH2 CH2SCH2 C3H4_C2v C3H6_D3h butadiene C4H4O C4H4S C4H4NH C5H5N C6H6 CH3CONH2
    CH3CH2OH CH3SCH3 H2CCHCl CCH C2H3 C2H5 H2COH CH3O CH3S CH3CO
""".split()

# Charge and multiplicity of what differs from the neutral ground state.
STATES = {
    (1, 1): "CH3 C2H5 C3H9C H2COH CH3CO NO NO2 HCO SiH3 C3H7",
    (-1, 1): "OH SH CN NO2 CH3O CH3S ClO CCH NH2 PH2 C2H3 CH3CO SiH3 CH3CH2O",
    (1, 2): "H2O NH3 C2H4 C6H6 H2CO CO2 CS2 butadiene C4H4O C4H4S C4H4NH CH3OCH3 CH3SCH3 C3H9N SH2 PH3",
    (-1, 2): "O2 S2 SO2 O3 CH3NO2 NCCN OCHCHO",
    (0, 3): "C2H4 H2CO C6H6 butadiene OCHCHO CH3CHO",
    (0, 1): "O2 S2 NH SO",
}

# Ions with the shape of a neutral molecule: template, substituted element, scale of the bonds, charge.
ISOELECTRONIC = {
    "NH4+": ("CH4", ("C", "N"), 0.94, 1),
    "PH4+": ("SiH4", ("Si", "P"), 0.95, 1),
    "H3O+": ("NH3", ("N", "O"), 0.97, 1),
    "BH4-": ("CH4", ("C", "B"), 1.13, -1),
    "AlH4-": ("SiH4", ("Si", "Al"), 1.10, -1),
    "BF4-": ("CF4", ("C", "B"), 1.06, -1),
    "AlCl4-": ("SiCl4", ("Si", "Al"), 1.06, -1),
}

PARTNERS = "H2O NH3 HF HCl CH4 CO2 N2 SH2 PH3 CH3OH HCN H2CO C2H2 C2H4 SiH4 CH3Cl H2CF2 LiF NaCl BF3 SO2 HCOOH CH3CN OCS".split()
PAIRS = 60


def groups() -> list[Group]:
    """Two draws of every molecule in every state, pairs of molecules, and one frame of every free atom."""
    listed = [_molecule_group(name, *_ground_state(name), draw) for name in NEUTRAL for draw in range(2)]
    for (charge, spin), names in STATES.items():
        listed += [_molecule_group(name, charge, spin, draw) for name in names.split() for draw in range(2)]
    listed += [_ion_group(name, draw) for name in ISOELECTRONIC for draw in range(2)]
    listed += [_pair_group(number) for number in range(PAIRS)]
    return listed + [_free_atom(symbol, spin) for symbol, spin in ATOMS.items()]


def _ground_state(name: str) -> tuple[int, int]:
    moments = molecule(name).get_initial_magnetic_moments()
    return 0, round(abs(moments.sum())) + 1


def _molecule_group(name: str, charge: int, spin: int, draw: int) -> Group:
    start = with_state(molecule(name), charge, spin)
    return Group(f"{name}/charge{charge:+d}/spin{spin}/{draw}", lambda rng: _distorted(start, rng), _frame)


def _ion_group(name: str, draw: int) -> Group:
    template, (old, new), scale, charge = ISOELECTRONIC[name]
    shape = molecule(template)
    shape.numbers[shape.numbers == atomic_numbers[old]] = atomic_numbers[new]
    shape.positions *= scale
    start = with_state(shape, charge)
    return Group(f"{name}/charge{charge:+d}/spin1/{draw}", lambda rng: _distorted(start, rng), _frame)


def _pair_group(number: int) -> Group:
    return Group(f"pair/{number}", _pair, _frame)


def _free_atom(symbol: str, spin: int) -> Group:
    atom = with_state(Atoms(symbol, positions=[(0.0, 0.0, 0.0)]), 0, spin)
    return Group(f"atom/{symbol}", lambda rng: atom, lambda base, rng: base, frames=1, reference=True)


def _distorted(start: Atoms, rng: Generator) -> Atoms:
    atoms = start.copy()
    atoms.positions = rotated(atoms.positions, rng) * (1 + rng.uniform(-0.02, 0.04))
    return displaced(atoms, rng, 0.03)


def _frame(base: Atoms, rng: Generator) -> Atoms:
    return displaced(base, rng, rng.uniform(0.02, 0.06))


def _pair(rng: Generator) -> Atoms:
    first, second = (molecule(PARTNERS[k]) for k in rng.choice(len(PARTNERS), 2, replace=False))
    first.positions, second.positions = rotated(first.positions, rng), rotated(second.positions, rng)
    direction = rng.normal(size=3)
    direction /= np.sqrt((direction**2).sum())
    radii = vdw_radii[first.numbers][:, None] + vdw_radii[second.numbers]
    wanted = rng.uniform(0.75, 1.1)
    apart = 0.0
    while _closest(first.positions, second.positions + apart * direction, radii) < wanted:
        apart += 0.02
    return with_state(first + Atoms(second.numbers, positions=second.positions + apart * direction))


def _closest(first: np.ndarray, second: np.ndarray, radii: np.ndarray) -> float:
    """The least distance in units of the sum of van der Waals radii."""
    distances = np.sqrt(((first[:, None] - second) ** 2).sum(axis=-1))
    return float((distances / radii).min())
