"""The same geometry found again: in another order, moved, turned, or written with other digits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, UInt64

from janus_graph import NeighborList, Structure, neighbor_lists

# Distances beyond this say nothing about a structure that shorter ones do not, Å.
_REACH = 4.0
# Sums over distances that differ by less, an atom, are the same. Coordinates written with eight digits move them by
# a thousandth of it; frames of a trajectory differ by a thousand times as much.
_STEP = 1e-5
_MOMENTS = 4
# The same for the extent, Å² or Å³ an atom.
_STEP_OF_EXTENT = 1e-3
_ATOMS_AT_A_TIME = 4096


def geometry_checksums(structures: Sequence[Structure]) -> UInt64[np.ndarray, "structures"]:
    """64 bits of each structure, the same for all orders, positions and orientations of its atoms.

    They are made of sums over the distances between neighbours, by pairs of elements, of the extent, charge and spin.
    Structures of the same checksum are almost certainly the same; `same_geometry` makes sure.
    """
    checksums = np.zeros(len(structures), dtype=np.uint64)
    part = np.cumsum([len(structure) for structure in structures]) // _ATOMS_AT_A_TIME
    for number in np.unique(part):
        places = np.flatnonzero(part == number).tolist()
        chosen = [structures[place] for place in places]
        for place, structure, listed in zip(places, chosen, neighbor_lists(chosen, _REACH), strict=True):
            checksums[place] = _checksum(structure, listed)
    return checksums


def same_geometry(first: Structure, second: Structure, tolerance: float = 1e-4) -> bool:
    """Whether two structures have the same elements, charge, spin, extent, and distances between neighbours.

    Args:
        first: one.
        second: the other.
        tolerance: distances may differ by so much, Å.
    """
    if (first.charge, first.spin) != (second.charge, second.spin):
        return False
    if not np.array_equal(np.sort(first.atomic_numbers), np.sort(second.atomic_numbers)):
        return False
    if abs(_extent(first) - _extent(second)) > _STEP_OF_EXTENT:
        return False
    one, other = (_sorted_distances(structure) for structure in (first, second))
    if one.shape != other.shape:
        return False
    return bool(np.array_equal(one[0], other[0]) and np.allclose(one[1], other[1], rtol=0, atol=tolerance))


def _checksum(structure: Structure, listed: NeighborList) -> int:
    pairs = _element_pairs(structure, listed)
    weight = (1 - (listed.distance / _REACH) ** 2) ** 2
    kinds, kind_of = np.unique(pairs, return_inverse=True)
    sums = [
        np.bincount(kind_of, weights=weight * (listed.distance / _REACH) ** power, minlength=len(kinds))
        for power in range(_MOMENTS)
    ]
    digest = hashlib.blake2b(digest_size=8)
    digest.update(np.sort(structure.atomic_numbers).tobytes())
    extent = round(_extent(structure) / _STEP_OF_EXTENT)
    digest.update(np.array([structure.charge, structure.spin, extent]).tobytes())
    steps = np.rint(np.stack(sums) / len(structure) / _STEP).astype(np.int64)
    seen = steps.any(axis=0)  # pairs at the very reach come and go with the last digit, and count nothing
    digest.update(kinds[seen].astype(np.int64).tobytes())
    digest.update(np.ascontiguousarray(steps[:, seen]).tobytes())
    return int.from_bytes(digest.digest(), "little")


def _extent(structure: Structure) -> float:
    """What tells structures apart whose atoms are far from each other: volume, area or length of the cell an atom, or
    without periods the mean square distance from the middle.
    """
    if not structure.periodic.any():
        return float(((structure.positions - structure.positions.mean(axis=0)) ** 2).sum(axis=1).mean())
    rows = structure.cell[structure.periodic]
    return float(np.sqrt(max(np.linalg.det(rows @ rows.T), 0.0))) / len(structure)


def _element_pairs(structure: Structure, listed: NeighborList) -> np.ndarray:
    ends = np.sort(structure.atomic_numbers[np.stack([listed.centre, listed.neighbour])], axis=0)
    pairs: np.ndarray = ends[0] * 256 + ends[1]
    return pairs


def _sorted_distances(structure: Structure) -> Float64[np.ndarray, "2 edges"]:
    """Pairs of elements and distances of all edges, sorted, but for those at the very reach, which come and go."""
    listed = neighbor_lists([structure], _REACH)[0]
    pairs = _element_pairs(structure, listed)
    weight = np.where(listed.distance < _REACH - 0.01, listed.distance, _REACH)
    order = np.lexsort((weight, pairs))
    kept = order[weight[order] < _REACH]
    return np.stack([pairs[kept].astype(np.float64), weight[kept]])
