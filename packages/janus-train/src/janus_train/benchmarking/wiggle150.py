"""Wiggle150: 150 highly strained conformers of three molecules (Brew et al., J. Chem. Theory Comput. 2025, 21, 3922,
doi:10.1021/acs.jctc.5c00015).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus_train.benchmarking.energies import mean_absolute, root_mean_square
from janus_train.benchmarking.judge import EV_TO_KCAL_PER_MOL, Judge, Judgement, found_file
from janus_train.failure import UserError

if TYPE_CHECKING:
    from ase import Atoms

_REFERENCE = "_00"


@dataclass(frozen=True, eq=False)
class Conformer:
    """A conformer.

    Attributes:
        name: as ado_07; `_00` is what the others of its molecule are compared with.
        atoms: its structure.
        energy: DLPNO-CCSD(T)/CBS, kcal/mol, from any zero that is the same for all conformers of a molecule.
    """

    name: str
    atoms: Atoms
    energy: float

    @property
    def molecule(self) -> str:
        """Which molecule it is of."""
        return self.name.rpartition("_")[0]


def judge_wiggle150(data: Path, judge: Judge) -> Judgement:
    """Errors of the energies of conformers relative to their molecule's conformer 00, kcal/mol.

    `error = (E_i − E_00)_predicted − (E_i − E_00)_reference`; MAE and RMSE are over all conformers but those with 00.

    Args:
        data: the supporting file of the paper, `ct5c00015_si_003.xyz`: plain XYZ whose comments are a name and an
            energy; or `wiggle150_dataset.json`; or a directory with one of them.
        judge: asks the potential.

    Raises:
        UserError: no such file, or it is not of that form.
    """
    path = found_file(data, ("*.xyz", "*wiggle150*.json"), "the conformers with their energies")
    conformers = read_json(path) if path.suffix == ".json" else read_xyz(path)
    predicted = {
        conformer.name: judge.energy(conformer.name, conformer.atoms)
        for conformer in judge.progress(conformers, len(conformers), "conformers")
    }
    rows: list[dict[str, Any]] = []
    all_errors: list[float] = []
    for molecule in dict.fromkeys(conformer.molecule for conformer in conformers):
        own = [conformer for conformer in conformers if conformer.molecule == molecule]
        errors = _errors(own, predicted)
        all_errors += errors
        rows.append({"molecule": molecule, "conformers": len(errors), **_errors_of(errors)})
    summary = {"conformers": len(all_errors), **_errors_of(all_errors)}
    return Judgement("wiggle150", "kcal/mol", summary, rows, judge.notices("conformers"))


def read_xyz(path: Path) -> list[Conformer]:
    """Conformers of a plain XYZ file whose comment lines hold a name and an energy in kcal/mol."""
    from ase import Atoms

    lines = path.read_text().splitlines()
    found, at = [], 0
    try:
        while at < len(lines):
            if not lines[at].strip():
                at += 1
                continue
            count = int(lines[at])
            words = lines[at + 1].split()
            name = next(word for word in words if not _is_number(word))
            energy = float(next(word for word in words if _is_number(word)))
            atoms = [line.split() for line in lines[at + 2 : at + 2 + count]]
            positions = [[float(x) for x in row[1:4]] for row in atoms]
            found.append(Conformer(name, Atoms([row[0] for row in atoms], positions=positions), energy))
            at += 2 + count
    except (ValueError, IndexError, StopIteration, KeyError) as error:
        raise UserError(
            f"{path}: the structure that begins in line {at + 1} is no XYZ with a comment such as 'ado_07 12.3' "
            f"({type(error).__name__}: {error})"
        ) from error
    return _with_references(found, path)


def read_json(path: Path) -> list[Conformer]:
    """Conformers of a JSON list of molecules: `molecule_name`, `atom_symbols`, `conformer_coordinates` in Å, and
    `dft_energy_profile` in kcal/mol. The conformer of lowest energy is that which the others are compared with.
    """
    from ase import Atoms

    try:
        content = json.loads(path.read_text())
        content = json.loads(content) if isinstance(content, str) else content
        found = []
        for molecule in content:
            energies = molecule["dft_energy_profile"]
            lowest = energies.index(min(energies))
            others = iter(range(1, len(energies)))
            for place, (energy, positions) in enumerate(zip(energies, molecule["conformer_coordinates"], strict=True)):
                number = 0 if place == lowest else next(others)
                atoms = Atoms(molecule["atom_symbols"], positions=positions)
                found.append(Conformer(f"{molecule['molecule_name']}_{number:02d}", atoms, float(energy)))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a list of molecules with molecule_name, atom_symbols, conformer_coordinates and "
            f"dft_energy_profile ({type(error).__name__}: {error})"
        ) from error
    return _with_references(found, path)


def _with_references(conformers: list[Conformer], path: Path) -> list[Conformer]:
    molecules = {conformer.molecule for conformer in conformers}
    lacking = molecules - {one.molecule for one in conformers if one.name.endswith(_REFERENCE)}
    if lacking or not molecules:
        raise UserError(f"{path}: no conformer {_REFERENCE} of {', '.join(sorted(lacking)) or 'any molecule'}")
    return conformers


def _errors(conformers: Sequence[Conformer], predicted: dict[str, float | None]) -> list[float]:
    reference = next(one for one in conformers if one.name.endswith(_REFERENCE))
    zero = predicted[reference.name]
    if zero is None:
        return []
    return [
        EV_TO_KCAL_PER_MOL * (energy - zero) - (one.energy - reference.energy)
        for one in conformers
        if one is not reference and (energy := predicted[one.name]) is not None
    ]


def _errors_of(errors: Sequence[float]) -> dict[str, float | None]:
    return {"mae": mean_absolute(errors), "rmse": root_mean_square(errors)}


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
