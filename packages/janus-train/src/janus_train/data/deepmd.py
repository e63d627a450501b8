"""Frames from systems for DeePMD in NumPy files.

A system is a directory with type.raw (a whole number for each atom), type_map.raw (the symbols that they count) and
directories set.* with coord.npy [frames, 3 atoms], box.npy [frames, 9], energy.npy, force.npy and virial.npy, in Å, eV
and eV/Å; a file nopbc says that nothing repeats. Systems of mixed types also have real_atom_types.npy [frames, atoms]
in each set, where -1 is no atom. A virial is minus the derivative of the energy by strain, so that the stress,
tension positive, is -virial/volume. (DeePMD-kit's documentation, "Formats of a system".)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from janus_graph import HIGHEST_ATOMIC_NUMBER, Structure
from janus_train.config import KeyNames
from janus_train.data.frame import Frame
from janus_train.data.labels import make_frame
from janus_train.failure import UserError

_PER_FRAME = ("coord", "box", "energy", "force", "virial", "real_atom_types")


def deepmd_frames(system: Path, keys: KeyNames, default_task: str) -> Iterator[Frame]:
    """The frames of a system, set after set.

    Raises:
        UserError: files that are missing, unreadable or of shapes that do not fit, unknown types or elements, and what
            `make_frame` refuses.
    """
    numbers = _atomic_numbers(system)
    types = _types(system)
    periodic = not (system / "nopbc").exists()
    sets = sorted(path for path in system.glob("set.*") if path.is_dir())
    if not sets:
        raise UserError(f"{system} has type.raw but no directory set.000 with coord.npy; it must hold at least one")
    for directory in sets:
        arrays = _arrays(directory, len(types), periodic)
        for row in range(len(arrays["coord"])):
            origin = f"frame {row} of {directory}"
            kinds = np.asarray(arrays["real_atom_types"][row], dtype=np.int64) if "real_atom_types" in arrays else types
            yield _frame(arrays, row, _elements(kinds, numbers, origin), (keys, default_task, origin))


def deepmd_label_names(system: Path) -> list[str]:
    """Names of what the first set of a system holds."""
    first = next((path for path in sorted(system.glob("set.*")) if path.is_dir()), system)
    return sorted(path.stem for path in first.glob("*.npy") if path.stem not in ("coord", "box", "real_atom_types"))


def _frame(arrays: Mapping[str, np.ndarray], row: int, numbers: np.ndarray, about: tuple[KeyNames, str, str]) -> Frame:
    keys, default_task, origin = about
    there = numbers > 0
    cell = np.asarray(arrays["box"][row], dtype=np.float64).reshape(3, 3) if "box" in arrays else np.zeros((3, 3))
    carried: dict[str, object] = {}
    if "energy" in arrays:
        carried[keys.energy] = float(np.asarray(arrays["energy"][row]).reshape(()))
    if "force" in arrays:
        carried[keys.forces] = np.asarray(arrays["force"][row], dtype=np.float64).reshape(-1, 3)[there]
    if "virial" in arrays and "box" in arrays:
        carried[keys.stress] = stress_of_virial(arrays["virial"][row], cell)

    def structure() -> Structure:
        positions = np.asarray(arrays["coord"][row], dtype=np.float64).reshape(-1, 3)[there]
        return Structure(numbers[there], positions, cell, np.full(3, "box" in arrays))

    return make_frame(structure, carried, keys, default_task, origin)


def stress_of_virial(virial: np.ndarray, cell: Float64[np.ndarray, "3 3"]) -> Float64[np.ndarray, "3 3"]:
    """Stress in eV/Å³, tension positive, of a virial in eV, which is minus the derivative of the energy by strain."""
    volume = abs(np.linalg.det(cell))
    # A cell without volume is refused, with its frame's name, where the structure is made.
    return -np.asarray(virial, dtype=np.float64).reshape(3, 3) / (volume if volume > 0 else 1.0)


def _arrays(directory: Path, atoms: int, periodic: bool) -> dict[str, np.ndarray]:
    """What a set holds, mapped from its files; shapes are checked."""
    arrays: dict[str, np.ndarray] = {}
    for name in _PER_FRAME:
        path = directory / f"{name}.npy"
        if path.exists() and not (name in ("box", "virial") and not periodic):
            try:
                arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (ValueError, OSError, EOFError) as error:
                raise UserError(f"{path} cannot be read ({error}); it is cut short, or no NumPy file") from error
    if "coord" not in arrays:
        raise UserError(f"{directory} has no coord.npy, so no frames; remove it or add the file")
    if periodic and "box" not in arrays:
        raise UserError(
            f"{directory} has no box.npy; add it, or an empty file named nopbc beside type.raw if nothing repeats"
        )
    width = {"coord": 3 * atoms, "box": 9, "energy": 1, "force": 3 * atoms, "virial": 9, "real_atom_types": atoms}
    frames = len(arrays["coord"])
    for name, array in arrays.items():
        if len(array) != frames or array.size != frames * width[name]:
            raise UserError(
                f"{directory / name}.npy has shape {array.shape}; with {frames} frames of {atoms} atoms (type.raw) it "
                f"must have {frames} rows of {width[name]} numbers"
            )
    return arrays


def _types(system: Path) -> np.ndarray:
    try:
        return np.array((system / "type.raw").read_text().split(), dtype=np.int64)
    except ValueError as error:
        raise UserError(f"{system / 'type.raw'} must hold a whole number for each atom ({error})") from error


def _atomic_numbers(system: Path) -> np.ndarray:
    """The atomic number of each type."""
    from ase.data import atomic_numbers

    path = system / "type_map.raw"
    if not path.exists():
        raise UserError(
            f"{system} has no type_map.raw, so its types are unknown; write their symbols there, one a line"
        )
    symbols = path.read_text().split()
    unknown = [symbol for symbol in symbols if not 0 < atomic_numbers.get(symbol, 0) <= HIGHEST_ATOMIC_NUMBER]
    if unknown:
        raise UserError(f"{path}: {unknown[0]!r} is not an element; use symbols H to Og")
    return np.array([atomic_numbers[symbol] for symbol in symbols], dtype=np.int64)


def _elements(types: np.ndarray, numbers: np.ndarray, origin: str) -> np.ndarray:
    """Atomic numbers of atoms with these types; zero for what is no atom."""
    wrong = types[(types < -1) | (types >= len(numbers))]
    if len(wrong):
        raise UserError(f"{origin}: type {wrong[0]} is not among the {len(numbers)} of type_map.raw")
    return np.where(types < 0, 0, np.append(numbers, 0)[types])
