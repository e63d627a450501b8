"""Frames from aselmdb files, decoded directly: the rows of an ASE database as compressed JSON in one LMDB file.

Keys are the rows' numbers in ASCII, beside `nextid`, `deleted_ids` and `metadata`; values are JSON behind zlib. Atoms,
cell and results are on top; charge, spin and whatever else the authors kept are in `data` and `key_value_pairs`. Making
an ASE row and then ASE atoms of it costs several times what decoding costs, and leaves charge and spin behind.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from janus_graph import Structure
from janus_train.config import KeyNames
from janus_train.data.aselmdb_blocks import Unusual, frames_together
from janus_train.data.frame import Frame
from janus_train.data.labels import make_frame
from janus_train.data.lmdb_files import open_lmdb
from janus_train.failure import UserError

if TYPE_CHECKING:
    import lmdb

_BLOCK = 64
# Length of a row's text below which its numbers are made Python's, and arrays of those: arrays of some ten atoms take
# longer to be asked for one by one.
_SHORT = 6000
_STRUCTURE, _INNER = ("numbers", "positions", "cell", "pbc"), ("data", "key_value_pairs")
# Types of arrays that have a buffer, and its name.
_BUFFERS = {"float64": (np.float64, "d"), "int64": (np.int64, "i")}
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
    name, decoder = str(path), RowDecoder((*_STRUCTURE, *_INNER, "charge", "spin", *keys.model_dump().values()))
    with open_lmdb(path) as file, file.begin() as transaction:
        beyond, deleted = _numbers(transaction, path)
        wanted = range(1, beyond) if rows is None else range(rows.start, min(rows.stop, beyond))
        numbers = iter([number for number in wanted if number not in deleted] if deleted else wanted)
        # All of a block are decoded, then all are made frames of: each kind of work finds its code in the cache.
        while block := list(islice(numbers, _BLOCK)):
            origins = [f"row {number} of {name}" for number in block]
            values = [transaction.get(str(number).encode()) for number in block]
            decoded = list(map(decoder, values, origins))
            yield from frames_of_rows(decoded, keys, default_task, origins)


def row_count(path: Path) -> int:
    """The highest number of a row."""
    with open_lmdb(path) as file, file.begin() as transaction:
        return _numbers(transaction, path)[0] - 1


def first_row(path: Path) -> dict[str, Any]:
    """Everything that the first row carries beside its structure."""
    with open_lmdb(path) as file, file.begin() as transaction:
        beyond, deleted = _numbers(transaction, path)
        number = next((number for number in range(1, beyond) if number not in deleted), 0)
        return carried_by(RowDecoder()(transaction.get(str(number).encode()), f"row {number} of {path}"))


class RowDecoder:
    """Makes rows of their values: of JSON behind zlib.

    Long arrays go from text to memory without a Python number for each of theirs; others stay ASE's JSON for arrays.

    Args:
        names: what of a long row, of its data and of its key-value pairs is decoded at least; None for everything.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        import simdjson
        from isal import isal_zlib

        self._names = None if names is None else frozenset(names)
        self._parser: Any = simdjson.Parser()
        self._list: Any = simdjson.Array
        self._mapping: Any = simdjson.Object
        self._unpack: Any = isal_zlib.decompress
        self._errors: Any = (isal_zlib.error, ValueError, TypeError)

    def __call__(self, value: bytes | None, origin: str) -> dict[str, Any]:
        """What is in the value of one row.

        Raises:
            UserError: there is no value, or it is not JSON behind zlib.
        """
        if value is None:
            raise UserError(f"{origin} is not there, and not among deleted_ids; the file is cut short or damaged")
        try:
            text = self._unpack(value)
            try:
                row = self._parser.parse(text)
            except ValueError:
                # Which knows NaN and Infinity, as ASE writes them.
                return dict(json.loads(text))
            short: dict[str, Any] | None = row.as_dict() if len(text) <= _SHORT else None
            return self._wanted(row) if short is None else short
        except self._errors as error:
            raise UserError(f"{origin} cannot be decoded ({error}); the file is damaged, or no aselmdb") from error

    def _wanted(self, mapping: Any) -> dict[str, Any]:
        # Its own items() makes Python numbers of everything, and looking for what is not there takes long.
        keys = mapping.keys()
        return {key: self._value(mapping[key]) for key in keys if self._names is None or key in self._names}

    def _value(self, value: Any) -> Any:
        if isinstance(value, self._list):
            return value.as_list()
        if not isinstance(value, self._mapping):
            return value
        try:
            shape, kind, numbers = value["__ndarray__"]
        except KeyError:
            return _plain(value.as_dict()) if "__ase_objtype__" in value else self._wanted(value)
        if kind in _BUFFERS:
            kind, of_type = _BUFFERS[kind]
            return np.frombuffer(numbers.as_buffer(of_type=of_type), kind).reshape(shape.as_list())
        return np.array(numbers.as_list(), dtype=kind).reshape(shape.as_list())


def carried_by(row: Mapping[str, Any]) -> dict[str, Any]:
    """Everything a row carries beside its structure: results before key-value pairs before data."""
    carried = _plain_row(_merged(row))
    for name in _NO_LABELS:
        carried.pop(name, None)
    return carried


def frames_of_rows(
    rows: Sequence[Mapping[str, Any]], keys: KeyNames, default_task: str, origins: Sequence[str]
) -> list[Frame]:
    """The frames of decoded rows: together where all are written in the usual way, else one by one."""
    try:
        return frames_together(rows, [_merged(row) for row in rows], keys, default_task, origins)
    except Unusual:
        return [frame_of_row(row, keys, default_task, at) for row, at in zip(rows, origins, strict=True)]


def frame_of_row(row: Mapping[str, Any], keys: KeyNames, default_task: str, origin: str) -> Frame:
    """The frame of a decoded row."""
    row = _plain_row(row)
    carried = carried_by(row)

    def structure() -> Structure:
        missing = [name for name in ("numbers", "positions") if name not in row]
        if missing:
            raise ValueError(f"the row has no {' and no '.join(missing)}; it is no row of an ASE database")
        return Structure(
            atomic_numbers=row["numbers"],
            positions=np.asarray(row["positions"], dtype=np.float64).reshape(-1, 3),
            cell=np.asarray(row.get("cell", np.zeros((3, 3)))),
            periodic=np.asarray(row.get("pbc", (False,) * 3)),
            charge=_whole(carried.get("charge", 0), "charge"),
            spin=_whole(carried.get("spin", 1), "spin"),
        )

    return make_frame(structure, carried, keys, default_task, origin)


def _numbers(transaction: lmdb.Transaction, path: Path) -> tuple[int, frozenset[int]]:
    """The number after the last, and those that were deleted."""
    beyond, deleted = transaction.get(b"nextid"), transaction.get(b"deleted_ids")
    if beyond is None:
        raise UserError(f"{path} is an LMDB file without 'nextid', so it is no aselmdb")
    gone = json.loads(zlib.decompress(deleted)) if deleted is not None else ()
    return int(json.loads(zlib.decompress(beyond))), frozenset(gone)


def _merged(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**_mapping(row.get("data")), **_mapping(row.get("key_value_pairs")), **row}


def _mapping(value: Any) -> Mapping[str, Any]:
    """Data are a mapping, or the text of one."""
    if isinstance(value, str):
        value = json.loads(value)
    return value if isinstance(value, dict) else {}


def _plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in row.items()}


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
    if isinstance(value, int):
        return value
    number = float(value)
    if not number.is_integer():
        raise ValueError(f"'{name}' is {value!r}; it must be a whole number")
    return int(number)
