"""Molecules, ions, radicals and free atoms, labelled by spin-polarised GFN2-xTB.

Geometries: the G2/97 set as ASE ships it. Method: Bannwarth, Ehlert and Grimme, J. Chem. Theory Comput. 15, 1652
(2019); spin polarisation: Neugebauer et al., J. Comput. Chem. 44, 2120 (2023).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.collections import g2
from frames import Frame, Labeller, Labels, labelled
from tblite.interface import Calculator

HARTREE, BOHR = 27.211386245988, 0.529177210903  # CODATA 2018; written out so that no library's update changes a byte
FRAMES_NEUTRAL, FRAMES_CHARGED = 5, 3
LARGEST_JUMP = 0.5  # eV; forces tell the energies of rattles of one molecule to 0.1 eV or so
CHARGED_EVERY = 3  # of the molecules, one in so many also comes with one electron less, and one with one more


def labeller(charge: int, spin: int) -> Labeller:
    """Energies and forces of a molecule with this charge and multiplicity."""

    def label(atoms: Atoms) -> Labels:
        calculator = Calculator("GFN2-xTB", atoms.numbers, atoms.positions / BOHR, charge=float(charge), uhf=spin - 1)
        calculator.set("verbosity", 0)
        calculator.set("accuracy", 0.01)
        calculator.set("max-iter", 500)
        calculator.add("spin-polarization", 1.0)
        result = calculator.singlepoint()
        return result["energy"] * HARTREE, -result["gradient"] * HARTREE / BOHR, None

    return label


def frames(seed: np.random.SeedSequence) -> Iterator[Frame]:
    """Free atoms once; every molecule a few times rattled; some also charged."""
    names = sorted(g2.names)
    for place, (name, child) in enumerate(zip(names, seed.spawn(len(names)), strict=True)):
        atoms = molecule(name)
        spin = 1 + round(abs(atoms.get_initial_magnetic_moments().sum()))
        states = [(0, spin, FRAMES_NEUTRAL)]
        if len(atoms) > 1 and place % CHARGED_EVERY != 2:
            states.append(((1, -1)[place % CHARGED_EVERY], spin + 1 if spin == 1 else spin - 1, FRAMES_CHARGED))
        for (charge, multiplicity, count), own in zip(states, child.spawn(len(states)), strict=True):
            yield from _state(name, charge, multiplicity, count if len(atoms) > 1 else 1, own)


def _state(name: str, charge: int, spin: int, count: int, seed: np.random.SeedSequence) -> list[Frame]:
    found = []
    for number, own in enumerate(seed.spawn(count)):
        rng = np.random.default_rng(own)
        atoms = molecule(name)
        atoms.set_initial_magnetic_moments(None)
        atoms.set_initial_charges(None)
        if len(atoms) > 1:
            atoms.positions += rng.normal(0, rng.uniform(0.01, 0.09), atoms.positions.shape)
        try:
            frame = labelled(atoms, labeller(charge, spin), "molecules", f"{name}{charge:+d}-{number}", charge, spin)
        except RuntimeError:  # no self-consistent solution: such a label would mean nothing
            continue
        if frame is not None:
            found.append(frame)
    return _of_one_electronic_state(found)


def _of_one_electronic_state(frames: list[Frame]) -> list[Frame]:
    """The frames whose energies differ by what their forces say.

    Self-consistency ends in another electronic state now and then, mostly of ions: eV away from rattles next to it. The
    state that most frames agree on stays; of states with as many frames, the lowest.
    """
    if not frames:
        return []
    agree = np.array([[_jump(one, other) < LARGEST_JUMP for other in frames] for one in frames])
    first = min(range(len(frames)), key=lambda place: (-int(agree[place].sum()), frames[place].energy))
    return [frame for frame, same in zip(frames, agree[first], strict=True) if same]


def _jump(one: Frame, other: Frame) -> float:
    """What the difference of two energies is beyond that of the mean force along the way, eV."""
    way = other.atoms.positions - one.atoms.positions
    return abs(other.energy - one.energy + float(((one.forces + other.forces) / 2 * way).sum()))
