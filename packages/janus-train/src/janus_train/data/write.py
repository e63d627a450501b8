"""Frames to extended XYZ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus_graph.ase import structure_to_ase
from janus_train.data.frame import LABELS, Frame

if TYPE_CHECKING:
    from ase import Atoms


def frame_to_ase(frame: Frame) -> Atoms:
    """The frame as an ASE object, its labels in a calculator that only remembers."""
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = structure_to_ase(frame.structure)
    atoms.info["task"] = frame.task
    labels = {label: getattr(frame, label) for label in LABELS if frame.has(label)}
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def write_frames(path: Path, frames: Sequence[Frame], about: Mapping[str, Any]) -> None:
    """Appends frames with their labels to an extended XYZ file; `about` is added to each one's info."""
    from ase.io import write

    written = [frame_to_ase(frame) for frame in frames]
    for atoms, frame in zip(written, frames, strict=True):
        atoms.info.update(about, origin=frame.origin)
    write(path, written, format="extxyz", append=True)
