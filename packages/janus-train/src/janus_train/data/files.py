"""Which files a path of the configuration stands for."""

from __future__ import annotations

import os
from glob import glob, has_magic
from pathlib import Path

from janus_train.failure import UserError

PACKED = (".gz", ".xz", ".bz2")
EXTENDED_XYZ = (".xyz", ".extxyz")
STORE_FILE = "store.json"
"""What a directory holds that `janus-train data convert` has finished."""

_TAKEN = (*EXTENDED_XYZ, *(kind + packed for kind in EXTENDED_XYZ for packed in PACKED), ".traj", ".db", ".aselmdb")


def files_of(path: Path) -> list[Path]:
    """The files that a path, a directory or a pattern stands for, in sorted order.

    A directory stands for everything in it and below that a reader knows by its name: extended XYZ, ASE trajectories
    and databases, aselmdb, VASP's vasprun.xml or else OUTCAR, DeePMD systems and converted stores. The last two are
    directories themselves.

    Raises:
        UserError: nothing is there, or nothing of a kind that is known.
    """
    if path.is_dir():
        found = _in_directory(path)
        if not found:
            raise UserError(
                f"no data in the directory {path}: it is looked through for {', '.join(_TAKEN)}, vasprun.xml, OUTCAR, "
                "DeePMD systems (type.raw) and converted stores; name other files yourself, a pattern such as "
                f"{path}/*.json will do"
            )
        return found
    if not path.exists() and has_magic(str(path)):
        matching = sorted(map(Path, glob(str(path), recursive=True)))
        if not matching:
            raise UserError(f"no file matches {path} (patterns without a leading / start at {Path.cwd()})")
        return [file for place in matching for file in (files_of(place) if place.is_dir() else [place])]
    if not path.exists():
        raise UserError(f"no file {path}; check the path (relative ones start at {Path.cwd()})")
    return [path]


def is_store(path: Path) -> bool:
    """Whether this is a directory that `janus-train data convert` has finished."""
    return (path / STORE_FILE).is_file()


def is_deepmd(path: Path) -> bool:
    """Whether this is a directory that holds one system for DeePMD."""
    return (path / "type.raw").is_file()


def _in_directory(path: Path) -> list[Path]:
    if is_store(path) or is_deepmd(path):
        return [path]
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    found: list[Path] = []
    for name in names:
        inner = path / name
        if inner.is_dir():
            found += _in_directory(inner)
        elif name.lower().endswith(_TAKEN) or _is_vasprun(name):
            found.append(inner)
        elif name.startswith("OUTCAR") and not any(map(_is_vasprun, names)):
            found.append(inner)  # else the same calculation would be there twice
    return found


def _is_vasprun(name: str) -> bool:
    return name.startswith("vasprun") and ".xml" in name
