"""Frames that are there twice: among those to learn from, and in training and validation both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt64

from janus_train.data.chosen import ChosenFrames, column_parts
from janus_train.data.columns import checksum, mixed
from janus_train.data.frame import Frame
from janus_train.data.geometry import geometry_checksums, same_geometry
from janus_train.data.store import Store

# Pairs of equal checksums that are looked at closely; of more than these the checksum is believed.
_CLOSELY = 2000


@dataclass(frozen=True, eq=False)
class Repeats:
    """Which frames have the geometry, charge, spin and task of another.

    Attributes:
        duplicates: pairs of places in training: one that is there again, and the first that is like it.
        leaks: pairs: a place in validation, and one in training.
    """

    duplicates: Int64[np.ndarray, "pairs 2"]
    leaks: Int64[np.ndarray, "pairs 2"]


def find_repeats(train: Sequence[Frame], val: Sequence[Frame]) -> Repeats:
    """Frames that are there twice, in whatever order and orientation their atoms are."""
    train_keys, val_keys = _keys(train), _keys(val)
    order = np.argsort(train_keys, kind="stable")
    ordered = train_keys[order]
    first = np.searchsorted(ordered, ordered)
    again = np.flatnonzero(first != np.arange(len(ordered)))
    duplicates = np.stack([order[again], order[first[again]]], axis=1)
    at = np.searchsorted(ordered, val_keys)
    found = np.flatnonzero(at < len(ordered))
    found = found[ordered[at[found]] == val_keys[found]]
    leaks = np.stack([found, order[at[found]]], axis=1)
    return Repeats(_confirmed(duplicates, train, train), _confirmed(leaks, val, train))


def repeat_warnings(train: Sequence[Frame], val: Sequence[Frame], named: int = 5) -> list[str]:
    """What a person should know of frames that are there twice; some are named."""
    repeats = find_repeats(train, val)
    warnings = []
    if len(repeats.leaks):
        warnings.append(
            f"{len(repeats.leaks)} frame(s) for validation are in training too, so that validation errors are too "
            f"small: {_pairs(repeats.leaks, val, train, named)}"
        )
    if len(repeats.duplicates):
        warnings.append(
            f"{len(repeats.duplicates)} training frame(s) are there again: "
            f"{_pairs(repeats.duplicates, train, train, named)}"
        )
    return warnings


def _pairs(pairs: np.ndarray, frames: Sequence[Frame], others: Sequence[Frame], named: int) -> str:
    names = [f"{frames[a].origin} (as {others[b].origin})" for a, b in pairs[:named].tolist()]
    return ", ".join(names) + (" …" if len(pairs) > named else "")


def _keys(frames: Sequence[Frame]) -> UInt64[np.ndarray, "frames"]:
    """Checksums of geometry, charge, spin and task."""
    tasks = [
        np.array([checksum(name) for name in columns.tasks], dtype=np.uint64)[columns.task]
        for columns in column_parts(frames)
    ]
    geometry = np.concatenate([np.zeros(0, np.uint64), *_checksums(frames)])
    return mixed(geometry ^ mixed(np.concatenate([np.zeros(0, np.uint64), *tasks])))


def _checksums(frames: Sequence[Frame]) -> Iterator[np.ndarray]:
    if isinstance(frames, ChosenFrames):
        for part in frames.parts:
            held = part.shelf.frames
            if isinstance(held, Store):
                yield held.geometry[part.rows]
            else:
                yield geometry_checksums([held[row].structure for row in part.rows.tolist()])
    elif isinstance(frames, Store):
        yield np.asarray(frames.geometry)
    else:
        yield geometry_checksums([frame.structure for frame in frames])


def _confirmed(pairs: np.ndarray, frames: Sequence[Frame], others: Sequence[Frame]) -> np.ndarray:
    pairs = pairs[np.argsort(pairs[:, 0])]
    same = [same_geometry(frames[a].structure, others[b].structure) for a, b in pairs[:_CLOSELY].tolist()]
    kept: np.ndarray = pairs[np.array([*same, *[True] * (len(pairs) - len(same))], dtype=bool)]
    return kept
