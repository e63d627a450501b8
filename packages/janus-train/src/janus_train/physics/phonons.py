"""Phonons by finite displacements in a supercell. Needs phonopy: the `phonons` extra."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Float64

# How far atoms may be from a symmetric place and still be put there, Å: relaxations end within a hundredth.
_SYMMETRY = 0.02


@dataclass(frozen=True, eq=False)
class PhononBands:
    """Frequencies along a path through the Brillouin zone.

    Attributes:
        labels: names of the corners of the path, e.g. G, X, W, K; G is Γ. Two with the same place are a jump.
        corners: length of the path up to each corner, 1/Å.
        along: length of the path up to each wave vector, 1/Å.
        frequencies: THz, ascending; imaginary ones are negative.
        lowest: the lowest of all, THz. Clearly below zero: the structure is no minimum.
        highest: THz.
        acoustic: largest size of the three lowest-sized frequencies at Γ, THz; translations cost nothing, so it should
            vanish.
        atoms: of the primitive cell.
        supercell_atoms: of the cell that the forces came from.
    """

    labels: tuple[str, ...]
    corners: Float64[np.ndarray, "corners"]
    along: Float64[np.ndarray, "points"]
    frequencies: Float64[np.ndarray, "points modes"]
    lowest: float
    highest: float
    acoustic: float
    atoms: int
    supercell_atoms: int


def phonon_bands(
    calculator: Any, atoms: Atoms, shortest: float = 9.0, displacement: float = 0.01, points: int = 60
) -> PhononBands:
    """The phonons of a crystal along the usual path of its lattice.

    Args:
        calculator: an ASE calculator with forces.
        atoms: a relaxed crystal; it is not changed. Its primitive cell is found first.
        shortest: the supercell repeats each lattice vector until it is this long, Å; about twice the reach of forces.
        displacement: Å.
        points: wave vectors along the path.

    Raises:
        ImportError: phonopy is not installed.
        ValueError: not a crystal.
    """
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    if not atoms.pbc.all():
        raise ValueError(f"phonons need a crystal; here pbc is {atoms.pbc.tolist()}")
    primitive = _primitive(atoms)
    cell = PhonopyAtoms(
        numbers=primitive.get_atomic_numbers(),
        cell=primitive.cell.array,
        scaled_positions=primitive.get_scaled_positions(),
    )
    repeats = np.ceil(shortest / primitive.cell.lengths()).astype(int)
    phonons = Phonopy(cell, supercell_matrix=np.diag(repeats), primitive_matrix=np.eye(3))
    phonons.generate_displacements(distance=displacement)
    phonons.forces = [_forces(calculator, moved, atoms.info) for moved in phonons.supercells_with_displacements]
    phonons.produce_force_constants()
    path = primitive.cell.bandpath(npoints=points, eps=1e-3)
    phonons.run_qpoints(np.vstack([np.zeros(3), path.kpts]))
    found = np.asarray(phonons.qpoints.frequencies, dtype=np.float64)
    along, corners, labels = path.get_linear_kpoint_axis()
    bands = found[1:]
    return PhononBands(
        labels=tuple(str(label) for label in labels),
        corners=np.asarray(corners, dtype=np.float64),
        along=np.asarray(along, dtype=np.float64),
        frequencies=bands,
        lowest=float(bands.min()),
        highest=float(bands.max()),
        acoustic=float(np.sort(np.abs(found[0]))[:3].max()),
        atoms=len(primitive),
        supercell_atoms=int(len(primitive) * repeats.prod()),
    )


def _primitive(atoms: Atoms) -> Atoms:
    """The symmetric primitive cell that these atoms are nearly in."""
    import spglib

    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.get_atomic_numbers())
    found = spglib.standardize_cell(cell, to_primitive=True, no_idealize=False, symprec=_SYMMETRY)
    if found is None:
        return atoms.copy()
    lattice, positions, numbers = found
    return Atoms(numbers, cell=lattice, scaled_positions=positions, pbc=True)


def _forces(calculator: Any, moved: Any, info: dict[str, Any]) -> np.ndarray:
    atoms = Atoms(moved.numbers, cell=moved.cell, scaled_positions=moved.scaled_positions, pbc=True, info=dict(info))
    atoms.calc = calculator
    return np.asarray(atoms.get_forces())
