"""Structures by name from files too large to be read at once."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self
from zipfile import ZipFile

from janus_train.failure import UserError

if TYPE_CHECKING:
    from ase import Atoms

_NAME = "material_id"


class Structures:
    """Structures of an archive with an extended XYZ file for each, or of one extended XYZ file. Used as a context.

    Those of an archive are read when they are asked for; their names are those of the files.

    Args:
        path: of a `.zip`, or of an extended XYZ file whose structures have a `material_id`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = ZipFile(path) if path.suffix == ".zip" else None
        self._members: dict[str, str] = {}
        self._read: dict[str, Atoms] = {}
        if self._archive is not None:
            members = [name for name in self._archive.namelist() if not name.endswith("/")]
            if len(members) > 1:
                self._members = {Path(name).name.split(".")[0]: name for name in members}
                return
            self._read = self._all(self._archive.read(members[0]).decode())
            return
        self._read = self._all(path.read_text())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._archive is not None:
            self._archive.close()

    def __len__(self) -> int:
        return len(self._members or self._read)

    def items(self) -> Iterator[tuple[str, Callable[[], Atoms]]]:
        """Each name, and what gives its structure."""
        for name in self._members or self._read:
            yield name, lambda name=name: self.get(name)  # type: ignore[misc]

    def get(self, name: str) -> Atoms:
        """The structure of this name.

        Raises:
            UserError: there is none.
        """
        if name in self._members:
            assert self._archive is not None
            (atoms,) = _read(self._archive.read(self._members[name]).decode(), self.path)
            return atoms
        if name not in self._read:
            raise UserError(f"{self.path} has no structure of {name}")
        return self._read[name].copy()

    def _all(self, text: str) -> dict[str, Atoms]:
        found = _read(text, self.path)
        unnamed = next((place for place, atoms in enumerate(found) if _NAME not in atoms.info), None)
        if unnamed is not None:
            raise UserError(f"structure {unnamed} of {self.path} has no {_NAME}")
        return {str(atoms.info[_NAME]): atoms for atoms in found}


def open_structures(path: Path) -> Structures:
    """The structures in a file.

    Raises:
        UserError: it is neither a zip archive nor extended XYZ, or its structures have no names.
    """
    try:
        return Structures(path)
    except UserError:
        raise
    except Exception as error:  # readers fail with whatever they stumble over
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


def _read(text: str, path: Path) -> list[Atoms]:
    from ase.io import read

    try:
        return list(read(io.StringIO(text), ":", format="extxyz"))
    except Exception as error:  # readers fail with whatever they stumble over
        raise UserError(f"{path} holds no extended XYZ ({type(error).__name__}: {error})") from error
