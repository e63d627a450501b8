"""The order of the atoms of a batch: by element, and neighbours in space near each other in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from janus_graph.structure import Structure

# Smaller structures fit into a processor's cache in any order.
_FEWEST_ATOMS_TO_ORDER = 512
_BITS = 16


def atom_order(structures: Sequence[Structure]) -> Int64[np.ndarray, "atoms"]:
    """Which atoms to take, counted through all structures: by element, then structure, then along a curve in space.

    Atoms of structures too small for it to matter stay in the order they were given in.
    """
    numbers = np.concatenate([structure.atomic_numbers for structure in structures])
    if max(len(structure) for structure in structures) < _FEWEST_ATOMS_TO_ORDER:
        return np.argsort(numbers, kind="stable")
    sizes = [len(structure) for structure in structures]
    along = np.concatenate(
        [
            space_filling_index(structure) if len(structure) >= _FEWEST_ATOMS_TO_ORDER else np.zeros(len(structure))
            for structure in structures
        ]
    )
    return np.lexsort((along, np.repeat(np.arange(len(sizes)), sizes), numbers))


def space_filling_index(structure: Structure) -> Float64[np.ndarray, "atoms"]:
    """Where each atom is along a Morton curve through the cell, or through the box around what does not repeat.

    Whole numbers below 2^48: coordinates, as parts of the cell, in 16 bits each, their bits interleaved.
    """
    periodic = structure.periodic
    parts = structure.positions.copy()
    if periodic.any():
        rows = np.where(periodic[:, None], structure.cell, 0.0)
        # Along the dual of a lattice vector one cell is one; where nothing repeats, coordinates stay Cartesian.
        parts[:, periodic] = (structure.positions @ np.linalg.pinv(rows))[:, periodic]
        parts[:, periodic] -= np.floor(parts[:, periodic])
    low, high = parts.min(axis=0), parts.max(axis=0)
    low[periodic], high[periodic] = 0.0, 1.0
    span = np.where(high > low, high - low, 1.0)
    steps = np.minimum((parts - low) / span * 2**_BITS, 2**_BITS - 1).astype(np.uint64)
    index = np.zeros(len(structure), dtype=np.uint64)
    for axis in range(3):
        spread = steps[:, axis]
        for by, mask in ((16, 0xFF0000FF), (8, 0x00F00F00F00F), (4, 0x0C30C30C30C3), (2, 0x249249249249)):
            spread = (spread | spread << np.uint64(by)) & np.uint64(mask)
        index |= spread << np.uint64(2 - axis)
    return index.astype(np.float64)
