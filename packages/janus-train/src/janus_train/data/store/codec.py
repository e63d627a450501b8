"""A frame as bytes and back, equal to the bit."""

from __future__ import annotations

import json
import struct

import numpy as np

from janus_graph import Structure
from janus_train.data.frame import LABELS, Frame

# Atoms, charge, spin, labels (bits), periodic directions (bits), and six unused bytes: numbers that follow are aligned.
_HEAD = struct.Struct("<IiiBB10x")


def encode_frame(frame: Frame) -> bytes:
    """The frame as bytes: a head, 64-bit numbers, atomic numbers, names."""
    structure = frame.structure
    labels = sum(1 << place for place, label in enumerate(LABELS) if frame.has(label))
    periodic = sum(1 << axis for axis in range(3) if structure.periodic[axis])
    numbers = [structure.positions, structure.cell, *(getattr(frame, label) for label in LABELS if frame.has(label))]
    return b"".join(
        [
            _HEAD.pack(len(structure), structure.charge, structure.spin, labels, periodic),
            *(np.ascontiguousarray(array, dtype="<f8").tobytes() for array in numbers),
            structure.atomic_numbers.astype(np.uint8).tobytes(),
            json.dumps([frame.task, frame.split, frame.group, frame.origin]).encode(),
        ]
    )


def decode_frame(value: bytes) -> Frame:
    """The frame that `encode_frame` made these bytes of."""
    atoms, charge, spin, bits, periodic = _HEAD.unpack_from(value)
    present = [label for place, label in enumerate(LABELS) if bits & 1 << place]
    shapes = {"energy": (), "forces": (atoms, 3), "stress": (3, 3), "magmoms": (atoms,)}
    wanted = [(atoms, 3), (3, 3), *(shapes[label] for label in present)]
    sizes = [int(np.prod(shape)) for shape in wanted]
    # A copy: a frame's arrays may be written to, and outlive the file.
    flat = np.frombuffer(value, dtype="<f8", count=sum(sizes), offset=_HEAD.size).copy()
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    positions, cell, *values = (part.reshape(shape) for part, shape in zip(parts, wanted, strict=True))
    after = _HEAD.size + flat.nbytes
    numbers = np.frombuffer(value, dtype=np.uint8, count=atoms, offset=after)
    task, split, group, origin = json.loads(value[after + atoms :])
    labels = dict(zip(present, values, strict=True))
    return Frame(
        Structure(numbers, positions, cell, np.array([bool(periodic & 1 << axis) for axis in range(3)]), charge, spin),
        task=task,
        energy=float(labels["energy"]) if "energy" in labels else None,
        forces=labels.get("forces"),
        stress=labels.get("stress"),
        magmoms=labels.get("magmoms"),
        split=split,
        group=group,
        origin=origin,
    )
