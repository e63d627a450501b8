"""X23: lattice energies of 23 molecular crystals (Reilly and Tkatchenko, J. Chem. Phys. 2013, 139, 024705,
doi:10.1063/1.4812819; by diffusion Monte Carlo: Della Pia et al., Phys. Rev. Lett. 2024, 133, 046401).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from janus_train.benchmarking.energies import mean_absolute, root_mean_square
from janus_train.benchmarking.judge import EV_TO_KJ_PER_MOL, Judge, Judgement, read_structure
from janus_train.benchmarking.relaxation import relaxed
from janus_train.failure import UserError

if TYPE_CHECKING:
    from ase import Atoms

_CRYSTAL, _MOLECULE, _COUNT, _REFERENCE = "POSCAR_solid", "POSCAR_molecule", "nmol", "lattice_energy"


@dataclass(frozen=True, eq=False)
class MolecularCrystal:
    """A crystal, its molecule, and what is known of them.

    Attributes:
        name: of the system.
        crystal: its cell.
        molecule: one molecule, alone.
        molecules: in the cell.
        energy: the lattice energy, kJ/mol for each molecule; negative where the crystal holds together.
    """

    name: str
    crystal: Atoms
    molecule: Atoms
    molecules: int
    energy: float


def judge_x23(data: Path, judge: Judge) -> Judgement:
    """Errors of lattice energies `E(crystal) / molecules − E(molecule)`, kJ/mol.

    Energies are those of the structures as they are; if the judge is to relax, of both relaxed, and then also how much
    the volume changes: given structures are those of experiment or of the reference method.

    Args:
        data: a directory with one for each system, which holds `POSCAR_solid`, `POSCAR_molecule`, `nmol` and
            `lattice_energy_DMC` (or one other `lattice_energy…`), whose first number is the reference in kJ/mol.
        judge: asks the potential.

    Raises:
        UserError: no such files.
    """
    systems = read_systems(data)
    relax = bool(judge.relax)
    rows, errors, changes = [], [], []
    for system in judge.progress(systems, len(systems), "crystals"):
        found = judge.ask(system.name, lambda system=system: _lattice_energy(system, judge.calculator, relax))  # type: ignore[misc]
        row: dict[str, Any] = {"system": system.name, "reference": system.energy, "predicted": None, "error": None}
        if found is not None:
            row |= {"predicted": found["energy"], "error": found["energy"] - system.energy}
            errors.append(row["error"])
        if relax:
            row["volume_change_percent"] = None if found is None else found["volume_change_percent"]
            changes += [] if found is None else [found["volume_change_percent"]]
        rows.append(row)
    summary = {"crystals": len(errors), "mae": mean_absolute(errors), "rmse": root_mean_square(errors),
               "mean_error": float(np.mean(errors)) if errors else None}  # fmt: skip
    if relax:
        summary["volume_mae_percent"] = mean_absolute(changes)
    return Judgement("x23", "kJ/mol", summary, rows, judge.notices("crystals"))


def read_systems(directory: Path) -> list[MolecularCrystal]:
    """The systems in the directories below a directory.

    Raises:
        UserError: there are none, or one that is not complete.
    """
    homes = sorted(path.parent for path in directory.rglob(_CRYSTAL))
    if not homes:
        raise UserError(f"no {_CRYSTAL} below {directory}; --data needs a directory for each crystal, with {_CRYSTAL}, "
                        f"{_MOLECULE}, {_COUNT} and {_REFERENCE}_DMC")  # fmt: skip
    return [
        MolecularCrystal(
            home.name,
            read_structure(home / _CRYSTAL, "vasp"),
            _alone(read_structure(home / _MOLECULE, "vasp")),
            round(_first_number(home / _COUNT)),
            _first_number(_reference(home)),
        )
        for home in homes
    ]


def _lattice_energy(system: MolecularCrystal, calculator: Any, relax: bool) -> dict[str, float]:
    crystal, molecule = system.crystal.copy(), system.molecule.copy()
    crystal.calc = molecule.calc = calculator
    if relax:
        molecule = relaxed(calculator, molecule)
        alone = molecule.get_potential_energy()
        crystal = relaxed(calculator, crystal)
    else:
        alone = molecule.get_potential_energy()
    energy = EV_TO_KJ_PER_MOL * (crystal.get_potential_energy() / system.molecules - alone)
    change = 100 * (crystal.get_volume() / system.crystal.get_volume() - 1)
    return {"energy": float(energy), "volume_change_percent": float(change)}


def _alone(molecule: Atoms) -> Atoms:
    """Without the box that plane waves need around a molecule, which is unwrapped first."""
    if molecule.pbc.any():
        vectors = molecule.get_distances(0, range(len(molecule)), mic=True, vector=True)
        molecule.positions = molecule.positions[0] + vectors
    molecule.pbc = False
    molecule.set_cell(None)
    return molecule


def _reference(home: Path) -> Path:
    preferred = home / f"{_REFERENCE}_DMC"
    found: Sequence[Path] = [preferred] if preferred.exists() else sorted(home.glob(f"{_REFERENCE}*"))
    if len(found) != 1:
        raise UserError(f"{home} needs one file {_REFERENCE}…; there are {len(found)}")
    return found[0]


def _first_number(path: Path) -> float:
    try:
        return float(path.read_text().split()[0])
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{path} does not begin with a number ({type(error).__name__}: {error})") from error
