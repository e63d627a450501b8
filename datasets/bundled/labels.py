"""Energy, forces and stress of a structure, from open tools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, CalculationFailed, SCFError
from ase.calculators.emt import EMT
from rigid_ions import rigid_ion_energy
from tblite.ase import TBLite


@dataclass(frozen=True)
class Labels:
    """Energy (eV), forces (N, 3) in eV/Å and, of a bulk, stress (3, 3) in eV/Å^3, tension positive."""

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None


class LabelError(Exception):
    """The tool did not arrive at an energy."""


Labeller = Callable[[Atoms], Labels]


def gfn2(atoms: Atoms) -> Labels:
    """Spin-polarised GFN2-xTB of a molecule in its charge and multiplicity; energies are electronic free energies at 300 K."""
    return _with_calculator(atoms, _tight_binding(atoms, "GFN2-xTB", spin_polarization=1.0))


def gfn1(atoms: Atoms) -> Labels:
    """GFN1-xTB of a periodic cell of closed-shell molecules, at the Γ point."""
    return _with_calculator(atoms, _tight_binding(atoms, "GFN1-xTB"))


def effective_medium(atoms: Atoms) -> Labels:
    """Effective medium theory, ASE's implementation; zero is the bulk metal, not the free atom."""
    return _with_calculator(atoms, EMT())


def rigid_ions(atoms: Atoms) -> Labels:
    """Ewald and Born–Mayer energy; the ions' charges and radii travel in the arrays `ion_charges` and `ion_radii`."""
    return Labels(*rigid_ion_energy(atoms, atoms.arrays["ion_charges"], atoms.arrays["ion_radii"]))


def _tight_binding(atoms: Atoms, method: str, spin_polarization: float | None = None) -> TBLite:
    return TBLite(
        method=method,
        charge=atoms.info["charge"],
        multiplicity=atoms.info["spin"],
        accuracy=0.001,
        max_iterations=300,
        spin_polarization=spin_polarization,
        verbosity=0,
    )


def _with_calculator(atoms: Atoms, calculator: Calculator) -> Labels:
    labelled = atoms.copy()
    labelled.calc = calculator
    try:
        energy, forces = labelled.get_potential_energy(), labelled.get_forces()
        stress = labelled.get_stress(voigt=False) if labelled.pbc.all() else None
    except (CalculationFailed, SCFError, RuntimeError) as error:
        raise LabelError(f"{atoms.get_chemical_formula()}: {error}") from error
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        raise LabelError(f"{atoms.get_chemical_formula()}: energy or forces are not finite")
    return Labels(float(energy), forces, stress)
