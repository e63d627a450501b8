"""LMDB files, opened where they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus_train.failure import UserError

if TYPE_CHECKING:
    import lmdb


def open_lmdb(path: Path) -> lmdb.Environment:
    """An LMDB file to read from, by any number of processes at once; nothing is written beside it.

    Raises:
        UserError: the package is not installed, or this is no LMDB file.
    """
    lmdb = lmdb_package()
    try:
        return lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False, max_spare_txns=8)
    except lmdb.Error as error:
        raise UserError(
            f"{path} cannot be read as LMDB ({error}); it is cut short, damaged, or another kind"
        ) from error


def lmdb_package() -> Any:
    """The package lmdb.

    Raises:
        UserError: it is not installed.
    """
    try:
        import lmdb
    except ModuleNotFoundError as error:
        raise UserError(
            "aselmdb files and converted stores need packages of the extra 'data': pip install 'janus-train[data]'"
        ) from error
    return lmdb
