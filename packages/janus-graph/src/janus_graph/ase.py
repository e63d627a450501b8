"""To and from ASE's Atoms. Needs the `ase` extra; nothing else in this package imports ASE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from janus_graph.structure import Structure

if TYPE_CHECKING:
    from ase import Atoms


def structure_from_ase(atoms: Atoms, task: int = 0) -> Structure:
    """The structure of an ASE object; charge and spin from `atoms.info`, else 0 and 1. The object is not changed.

    Raises:
        ValueError: what `Structure` refuses, and a charge or spin that is not a whole number.
    """
    return Structure(
        atomic_numbers=atoms.get_atomic_numbers().astype(np.int64),
        positions=atoms.get_positions(),
        cell=np.array(atoms.cell.array),
        periodic=np.array(atoms.pbc),
        charge=_whole_number(atoms.info.get("charge", 0), "charge"),
        spin=_whole_number(atoms.info.get("spin", 1), "spin"),
        task=task,
    )


def structure_to_ase(structure: Structure) -> Atoms:
    """An ASE object with the structure's atoms, cell, charge and spin."""
    from ase import Atoms

    return Atoms(
        numbers=structure.atomic_numbers,
        positions=structure.positions,
        cell=structure.cell,
        pbc=structure.periodic,
        info={"charge": structure.charge, "spin": structure.spin},
    )


def _whole_number(value: Any, name: str) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not number.is_integer():
        raise ValueError(f"info['{name}'] is {value!r}; it must be a whole number")
    return int(number)
