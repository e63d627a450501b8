"""Frames from files that ASE reads, checked as they come."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from janus_graph.ase import structure_from_ase
from janus_train.config import KeyNames
from janus_train.data.frame import LABELS, Frame
from janus_train.failure import UserError

if TYPE_CHECKING:
    from ase import Atoms


_EXTENDED_XYZ = (".xyz", ".extxyz")


def read_frames(path: Path, keys: KeyNames, default_task: str = "default") -> list[Frame]:
    """All frames of a file, in its order.

    Raises:
        UserError: the file is missing, empty, cut short or unreadable, or a frame is not physical (no atoms, unknown
            element, cell without volume, labels that are NaN, infinite or of the wrong shape). The message names the
            frame.
    """
    frames = [
        _frame(atoms, keys, default_task, f"frame {number} of {path}") for number, atoms in enumerate(_read_atoms(path))
    ]
    if not frames:
        raise UserError(f"{path} is empty; it must hold at least one structure")
    return frames


def label_names(atoms: Atoms) -> list[str]:
    """Names of everything a frame carries beside its atoms and cell, as its file calls them."""
    carried = set(atoms.info) | (set(atoms.arrays) - {"numbers", "positions"})
    return sorted(carried | set(_results(atoms)))


def frame_label_names(path: Path) -> list[str]:
    """Names of what the first frame of a file carries: what to choose from when a label is not found."""
    return label_names(next(_read_atoms(path)))


def _read_atoms(path: Path) -> Iterator[Atoms]:
    from ase.io import iread

    if not path.is_file():
        raise UserError(f"no file {path}; check the path (relative ones start at {Path.cwd()})")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty; it must hold at least one structure")
    number = 0
    try:
        for atoms in iread(*_source(path)):
            yield atoms
            number += 1
    except KeyError as error:
        raise UserError(
            f"frame {number} of {path}: {error.args[0]!r} is not an element; use symbols H to Og"
        ) from error
    # Readers fail with whatever they stumble over; all of it means the same to the user.
    except Exception as error:
        raise UserError(
            f"frame {number} of {path} cannot be read ({type(error).__name__}: {error}); the file is cut short or "
            "damaged, or not of the format its name says"
        ) from error


def _source(path: Path) -> tuple[Path | io.StringIO, str, str | None]:
    """What ASE is to read: the file, which frames of it, in which format (None: whatever its name says).

    Extended XYZ is unpacked first: ASE goes back to the start of every frame, and going back in a packed file means
    unpacking it again from the beginning (13 s instead of 1 s for the bundled set).
    """
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
    if path.with_suffix("").suffix in _EXTENDED_XYZ and path.suffix in openers:
        with openers[path.suffix](path, "rt") as file:
            return io.StringIO(str(file.read())), ":", "extxyz"
    return path, ":", "extxyz" if path.suffix in _EXTENDED_XYZ else None


def _results(atoms: Atoms) -> Mapping[str, Any]:
    return {} if atoms.calc is None else {k: v for k, v in atoms.calc.results.items() if v is not None}


def _frame(atoms: Atoms, keys: KeyNames, default_task: str, origin: str) -> Frame:
    try:
        structure = structure_from_ase(atoms)
        labels = {label: _label(atoms, label, getattr(keys, label), len(structure)) for label in LABELS}
    except ValueError as error:
        raise UserError(f"{origin}: {error}") from error
    return Frame(
        structure,
        task=str(atoms.info.get(keys.task, default_task)),
        split=str(atoms.info.get(keys.split, "")),
        group=str(atoms.info.get(keys.group, "")),
        origin=origin,
        **labels,
    )


def _label(atoms: Atoms, label: str, key: str, count: int) -> Any:
    value = _results(atoms).get(key, atoms.arrays.get(key, atoms.info.get(key)))
    if value is None or (label == "magmoms" and key == "magmoms" and key not in _results(atoms)):
        return None
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"'{key}' is {value!r}, which is not numbers; correct it or set data.keys.{label}") from None
    shape = {"energy": (), "forces": (count, 3), "stress": (3, 3), "magmoms": (count,)}[label]
    if label == "stress":
        array = _full_stress(array)
    if array.shape != shape:
        raise ValueError(f"'{key}' has shape {array.shape} instead of {shape}; correct it or set data.keys.{label}")
    if not np.isfinite(array).all():
        where = "" if label in ("energy", "stress") else f" on atom {int(np.argwhere(~np.isfinite(array))[0][0])}"
        raise ValueError(f"'{key}' is NaN or infinite{where}; remove the frame or the label")
    return float(array) if label == "energy" else array


def _full_stress(array: np.ndarray) -> np.ndarray:
    """Nine numbers as a matrix; six in Voigt order (xx, yy, zz, yz, xz, xy), which is ASE's."""
    if array.shape == (6,):
        return array[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)
    return array.reshape(3, 3) if array.size == 9 else array
