"""A frame: one structure with the labels it has."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from janus_graph import Structure

LABELS = ("energy", "forces", "stress", "magmoms")
"""What a frame can be labelled with."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One labelled structure; labels it does not have are None.

    Attributes:
        structure: atoms and cell, charge and spin.
        task: name of the level of theory.
        energy: total energy, eV.
        forces: eV/Å, in the order of the structure's atoms.
        stress: eV/Å³, tension positive.
        magmoms: μB; only their magnitude is learnt.
        split: "train", "val", "test" or "".
        group: frames of one group belong together when data are split; "" means the frame stands alone.
        origin: where it comes from, for messages: "frame 812 of train.extxyz".
    """

    structure: Structure
    task: str
    energy: float | None = None
    forces: Float64[np.ndarray, "atoms 3"] | None = None
    stress: Float64[np.ndarray, "3 3"] | None = None
    magmoms: Float64[np.ndarray, "atoms"] | None = None
    split: str = ""
    group: str = ""
    origin: str = ""

    def has(self, label: str) -> bool:
        """Whether the frame is labelled with "energy", "forces", "stress" or "magmoms"."""
        return getattr(self, label) is not None


def with_task_indices(frames: Sequence[Frame], tasks: Sequence[str]) -> list[Frame]:
    """The same frames, their structures numbered by the place of their task's name in `tasks`."""
    index = {name: place for place, name in enumerate(tasks)}
    return [
        dataclasses.replace(frame, structure=dataclasses.replace(frame.structure, task=index[frame.task]))
        for frame in frames
    ]


def fingerprint(frames: Iterable[Frame]) -> str:
    """A checksum of everything that training reads from the frames, in their order."""
    digest = hashlib.sha256()
    for frame in frames:
        structure = frame.structure
        labels = (structure.charge, structure.spin, frame.task, frame.energy)
        digest.update(repr(labels).encode())
        for array in (structure.atomic_numbers, structure.positions, structure.cell, structure.periodic,
                      frame.forces, frame.stress, frame.magmoms):  # fmt: skip
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
