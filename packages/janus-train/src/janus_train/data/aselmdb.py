"""Frames from aselmdb files, decoded directly: the rows of an ASE database as compressed JSON in one LMDB file.

Keys are the rows' numbers in ASCII, beside `nextid`, `deleted_ids` and `metadata`; values are JSON behind zlib. Atoms,
cell and results are on top; charge, spin and whatever else the authors kept are in `data` and `key_value_pairs`. Making
an ASE row and then ASE atoms of it costs several times what decoding costs, and leaves charge and spin behind.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from janus_graph import Structure
from janus_train.config import KeyNames
from janus_train.data.frame import Frame
from janus_train.data.labels import make_frame
from janus_train.data.lmdb_files import open_lmdb
from janus_train.failure import UserError

if TYPE_CHECKING:
    import lmdb

# Parts of a row that are its structure, or that nobody learns from.
_NO_LABELS = ("numbers", "positions", "cell", "pbc", "data", "key_value_pairs", "constraints", "unique_id", "ctime",
              "mtime", "user", "calculator", "calculator_parameters")  # fmt: skip


def aselmdb_frames(path: Path, keys: KeyNames, default_task: str, rows: range | None = None) -> Iterator[Frame]:
    """The rows of an aselmdb file by their numbers, which begin at 1.

    Args:
        path: the file.
        keys: names of the labels.
        default_task: of rows that name none.
        rows: only these numbers; None for all.

    Raises:
        UserError: no LMDB file, a row that is missing or damaged, and what `make_frame` refuses.
    """
    with open_lmdb(path) as file, file.begin() as transaction:
        first, beyond, deleted = _numbers(transaction, path)
        for number in rows if rows is not None else range(first, beyond):
            if number in deleted or number >= beyond:
                continue
            origin = f"row {number} of {path}"
            yield frame_of_row(decoded_row(transaction.get(str(number).encode()), origin), keys, default_task, origin)


def row_count(path: Path) -> int:
    """The highest number of a row."""
    with open_lmdb(path) as file, file.begin() as transaction:
        return _numbers(transaction, path)[1] - 1


def first_row(path: Path) -> dict[str, Any]:
    """Everything that the first row carries beside its structure."""
    with open_lmdb(path) as file, file.begin() as transaction:
        first, beyond, deleted = _numbers(transaction, path)
        number = next((number for number in range(first, beyond) if number not in deleted), 0)
        return carried_by(decoded_row(transaction.get(str(number).encode()), f"row {number} of {path}"))


def decoded_row(value: bytes | None, origin: str) -> dict[str, Any]:
    """What is in the value of one row.

    Raises:
        UserError: there is no value, or it is not JSON behind zlib.
    """
    if value is None:
        raise UserError(f"{origin} is not there, and not among deleted_ids; the file is cut short or damaged")
    try:
        return dict(_json(zlib.decompress(value)))
    except (zlib.error, ValueError, TypeError) as error:
        raise UserError(f"{origin} cannot be decoded ({error}); the file is damaged, or no aselmdb") from error


def carried_by(row: Mapping[str, Any]) -> dict[str, Any]:
    """Everything a row carries beside its structure: results before key-value pairs before data."""
    inner = {**_mapping(row.get("data")), **_mapping(row.get("key_value_pairs"))}
    results = {key: value for key, value in row.items() if key not in _NO_LABELS}
    return {key: _plain(value) for key, value in {**inner, **results}.items()}


def frame_of_row(row: Mapping[str, Any], keys: KeyNames, default_task: str, origin: str) -> Frame:
    """The frame of a decoded row."""
    carried = carried_by(row)

    def structure() -> Structure:
        missing = [name for name in ("numbers", "positions") if name not in row]
        if missing:
            raise ValueError(f"the row has no {' and no '.join(missing)}; it is no row of an ASE database")
        return Structure(
            atomic_numbers=np.asarray(_plain(row["numbers"])),
            positions=np.asarray(_plain(row["positions"]), dtype=np.float64).reshape(-1, 3),
            cell=np.asarray(_plain(row.get("cell", np.zeros((3, 3)))), dtype=np.float64),
            periodic=np.asarray(_plain(row.get("pbc", (False,) * 3))),
            charge=_whole(carried.get("charge", 0), "charge"),
            spin=_whole(carried.get("spin", 1), "spin"),
        )

    return make_frame(structure, carried, keys, default_task, origin)


def _numbers(transaction: lmdb.Transaction, path: Path) -> tuple[int, int, frozenset[int]]:
    """The first number, the one after the last, and those that were deleted."""
    beyond, deleted = transaction.get(b"nextid"), transaction.get(b"deleted_ids")
    if beyond is None:
        raise UserError(f"{path} is an LMDB file without 'nextid', so it is no aselmdb")
    return (
        1,
        int(_json(zlib.decompress(beyond))),
        frozenset(_json(zlib.decompress(deleted)) if deleted is not None else ()),
    )


def _json(text: bytes) -> Any:
    import orjson

    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)  # which knows NaN and Infinity, as ASE writes them


def _mapping(value: Any) -> Mapping[str, Any]:
    """Data are a mapping, or the text of one."""
    if isinstance(value, str):
        value = _json(value.encode())
    return value if isinstance(value, Mapping) else {}


def _plain(value: Any) -> Any:
    """ASE's JSON for arrays, {"__ndarray__": [shape, type, numbers]}, and for cells, as arrays."""
    if not isinstance(value, dict):
        return value
    if "__ndarray__" in value:
        shape, kind, numbers = value["__ndarray__"]
        return np.asarray(numbers, dtype=kind).reshape(shape)
    if "__ase_objtype__" in value and "array" in value:
        return _plain(value["array"])
    return value


def _whole(value: Any, name: str) -> int:
    number = float(value)
    if not number.is_integer():
        raise ValueError(f"'{name}' is {value!r}; it must be a whole number")
    return int(number)
