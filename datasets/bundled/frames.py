"""What a labelled frame is here, how it is rounded before it is labelled, and how it is written."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms

# Labels belong to the rounded coordinates. Energies and forces are rounded too, far below their meaning, so that the
# last bits of another machine's arithmetic seldom show.
COORDINATE_DECIMALS = 5
FORCE_DECIMALS = 5
ENERGY_DECIMALS = 6
STRESS_DECIMALS = 8

# Frames beyond this are further from equilibrium than anybody simulates, eV/Å.
LARGEST_FORCE = 20.0

Labels = tuple[float, np.ndarray, np.ndarray | None]
Labeller = Callable[[Atoms], Labels]
"""Energy (eV), forces (eV/Å) and, or None, stress (3 × 3, eV/Å³, tension positive) of a structure."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A labelled structure. Frames of one `group` are in one split."""

    atoms: Atoms
    task: str
    group: str
    energy: float
    forces: np.ndarray
    stress: np.ndarray | None
    charge: int = 0
    spin: int = 1


def rounded(atoms: Atoms) -> Atoms:
    """The structure with the coordinates that will be written."""
    atoms = atoms.copy()
    atoms.set_cell(np.round(atoms.cell.array, COORDINATE_DECIMALS), scale_atoms=False)
    atoms.positions = np.round(atoms.positions, COORDINATE_DECIMALS)
    return atoms


def labelled(atoms: Atoms, labeller: Labeller, task: str, group: str, charge: int = 0, spin: int = 1) -> Frame | None:
    """The frame, or None where its forces are out of bounds."""
    atoms = rounded(atoms)
    energy, forces, stress = labeller(atoms)
    if not np.isfinite(forces).all() or np.abs(forces).max() > LARGEST_FORCE:
        return None
    return Frame(atoms, task, group, energy, forces, stress, charge, spin)


def write_frames(path: Path, frames: Iterable[tuple[Frame, str]]) -> None:
    """Writes frames and their splits as gzipped extended XYZ, the same bytes for the same frames."""
    text = "".join(_lines(frame, split) for frame, split in frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=0) as packed:
        packed.write(text.encode())


def _lines(frame: Frame, split: str) -> str:
    atoms = frame.atoms
    fields = ["Properties=species:S:1:pos:R:3:forces:R:3"]
    if atoms.pbc.any():
        fields.insert(0, f'Lattice="{_numbers(atoms.cell.array.ravel(), COORDINATE_DECIMALS)}"')
    fields += [
        f"energy={_number(frame.energy, ENERGY_DECIMALS)}",
        f"task={frame.task}",
        f"charge={frame.charge}",
        f"spin={frame.spin}",
        f"split={split}",
        f"group={frame.group}",
        'pbc="' + " ".join("T" if flag else "F" for flag in atoms.pbc) + '"',
    ]
    if frame.stress is not None:
        fields.append(f'stress="{_numbers(frame.stress.ravel(), STRESS_DECIMALS)}"')
    rows = [
        f"{symbol} {_numbers(position, COORDINATE_DECIMALS)} {_numbers(force, FORCE_DECIMALS)}"
        for symbol, position, force in zip(atoms.get_chemical_symbols(), atoms.positions, frame.forces, strict=True)
    ]
    return "\n".join([str(len(atoms)), " ".join(fields), *rows]) + "\n"


def _numbers(values: Iterable[float], decimals: int) -> str:
    return " ".join(_number(value, decimals) for value in values)


def _number(value: float, decimals: int) -> str:
    # Adding zero turns -0.0 into 0.0.
    return f"{round(float(value), decimals) + 0.0:.{decimals}f}"
