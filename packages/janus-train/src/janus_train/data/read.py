"""Frames from files of any kind that is known, checked as they come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from janus_train.config import KeyNames
from janus_train.data import ase_files, aselmdb, deepmd
from janus_train.data.files import files_of, is_deepmd, is_store
from janus_train.data.frame import Frame
from janus_train.failure import UserError

_DATABASES = (".db", ".json")


def read_frames(path: Path, keys: KeyNames, default_task: str = "default") -> list[Frame]:
    """All frames of a file, a directory or a pattern, in order.

    Raises:
        UserError: a file is missing, empty, cut short or unreadable, or a frame is not physical (no atoms, unknown
            element, cell without volume, labels that are NaN, infinite or of the wrong shape). The message names the
            frame.
    """
    return [frame for file in files_of(path) for frame in frames_of_file(file, keys, default_task)]


def frames_of_file(path: Path, keys: KeyNames, default_task: str = "default") -> Iterator[Frame]:
    """The frames of one file (or DeePMD system, or store), read as they are asked for; at least one.

    Raises:
        UserError: as `read_frames`.
    """
    frames = _reader(path, keys, default_task)
    first = next(frames, None)
    if first is None:
        raise UserError(f"{path} is empty; it must hold at least one structure")
    yield first
    yield from frames


def frame_label_names(path: Path) -> list[str]:
    """Names of what the first frame of a file carries: what to choose from when a label is not found."""
    file = files_of(path)[0]
    if is_deepmd(file):
        return deepmd.deepmd_label_names(file)
    if file.suffix == ".aselmdb":
        return sorted(aselmdb.first_row(file))
    if is_store(file):
        from janus_train.data.store import Store

        return Store(file).label_names()
    if file.suffix in _DATABASES:
        return ase_files.database_label_names(file)
    return sorted(ase_files.carried_by(ase_files.first_of_ase_file(file)))


def _reader(path: Path, keys: KeyNames, default_task: str) -> Iterator[Frame]:
    if is_store(path):
        from janus_train.data.store import Store

        return iter(Store(path, default_task))
    if is_deepmd(path):
        return deepmd.deepmd_frames(path, keys, default_task)
    if path.suffix == ".aselmdb":
        return aselmdb.aselmdb_frames(path, keys, default_task)
    if path.suffix in _DATABASES:
        return ase_files.database_frames(path, keys, default_task)
    return ase_files.ase_frames(path, keys, default_task)
