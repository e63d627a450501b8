"""Frames from files that ASE reads, and from its databases."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus_graph.ase import structure_from_ase
from janus_train.config import KeyNames
from janus_train.data.files import EXTENDED_XYZ
from janus_train.data.frame import Frame
from janus_train.data.labels import make_frame
from janus_train.failure import UserError

if TYPE_CHECKING:
    from ase import Atoms


def ase_frames(path: Path, keys: KeyNames, default_task: str) -> Iterator[Frame]:
    """The frames of a file that ASE reads, in its order.

    Raises:
        UserError: an empty, damaged or unreadable file, and what `make_frame` refuses.
    """
    for number, atoms in enumerate(_read_atoms(path)):
        yield frame_of_atoms(atoms, keys, default_task, f"frame {number} of {path}")


def database_frames(path: Path, keys: KeyNames, default_task: str) -> Iterator[Frame]:
    """The rows of an ASE database (SQLite or JSON), by their numbers; labels may be in its key-value pairs and data."""
    from ase.db import connect

    number = None
    try:
        for row in connect(path).select():
            number = row.id
            atoms = row.toatoms()
            atoms.info.update({**row.data, **row.key_value_pairs})
            yield frame_of_atoms(atoms, keys, default_task, f"row {number} of {path}")
    except UserError:
        raise
    # Whatever a damaged database makes its reader fail with means the same to the user.
    except Exception as error:
        where = f"row after {number} of {path}" if number is not None else str(path)
        raise UserError(
            f"{where} cannot be read as an ASE database ({type(error).__name__}: {error}); it is damaged, or of "
            "another kind than its name says"
        ) from error


def frame_of_atoms(atoms: Atoms, keys: KeyNames, default_task: str, origin: str) -> Frame:
    """The frame of an ASE object."""
    return make_frame(lambda: structure_from_ase(atoms), carried_by(atoms), keys, default_task, origin)


def carried_by(atoms: Atoms) -> dict[str, Any]:
    """Everything an ASE object carries beside its atoms and cell, by name; results of its calculator come first."""
    rest = {
        key: value
        for key, value in {**atoms.info, **atoms.arrays}.items()
        if key not in ("numbers", "positions", "magmoms")
    }
    results = {} if atoms.calc is None else {k: v for k, v in atoms.calc.results.items() if v is not None}
    return {**rest, **results}


def database_label_names(path: Path) -> list[str]:
    """Names of what the first row of an ASE database carries."""
    from ase.db import connect

    row = next(iter(connect(path).select(limit=1)))
    return sorted({*carried_by(row.toatoms()), *row.data, *row.key_value_pairs} - {"data", "key_value_pairs"})


def first_of_ase_file(path: Path) -> Atoms:
    """The first frame of a file, as ASE has it."""
    return next(_read_atoms(path))


def _read_atoms(path: Path) -> Iterator[Atoms]:
    from ase.io import iread

    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty; it must hold at least one structure")
    number = 0
    try:
        with _unpacked(path) as (file, kind):
            for atoms in iread(file, ":", kind):
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


@contextmanager
def _unpacked(path: Path) -> Iterator[tuple[Any, str | None]]:
    """What ASE is to read, and in which format (None: whatever its name says).

    Extended XYZ is unpacked first: ASE goes back to the start of every frame, and going back in a packed file means
    unpacking it again from the beginning (13 s instead of 1 s for the bundled set).
    """
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
    if path.with_suffix("").suffix in EXTENDED_XYZ and path.suffix in openers:
        with openers[path.suffix](path, "rb") as packed, tempfile.TemporaryFile("w+b") as plain:
            shutil.copyfileobj(packed, plain)
            plain.seek(0)
            yield io.TextIOWrapper(plain), "extxyz"
    else:
        yield path, "extxyz" if path.suffix in EXTENDED_XYZ else None
