"""How many rows of neighbours parts of a structure need, from its size alone: as if atoms filled a box evenly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Points that stand for the atoms of a box.
_POINTS = 20_000


@dataclass(frozen=True)
class Halo:
    """Rows that a part of a structure sends to other parts, and that it gets from them."""

    sent: float
    received: float


def expected_halos(
    heights: Sequence[float], periodic: Sequence[bool], atoms: int, shares: Sequence[float], cutoff: float
) -> list[Halo]:
    """The halo of each part of a box that is cut as `janus_graph.partition` cuts structures.

    An atom is a ghost of a part if one of the part's atoms is nearer than the cutoff. At depth h below the reach of a
    face these are expected in a cap of a sphere, π h² (3 r − h) / 3; ghosts are where there is one at least.

    Args:
        heights: of the box, Å.
        periodic: in which directions it repeats.
        atoms: in the box.
        shares: parts of the whole, adding up to one.
        cutoff: edges are shorter, Å.
    """
    if len(shares) == 1:
        return [Halo(0.0, 0.0)]
    boxes = _boxes(heights, periodic, shares, cutoff)
    points, weight = _points(heights, atoms)
    density = atoms / math.prod(heights)
    owner = np.zeros(len(points), dtype=np.int64)
    for part, box in enumerate(boxes):
        inside = [(points[:, axis] >= box[axis][0]) & (points[:, axis] < box[axis][1]) for axis in range(3)]
        owner[np.logical_and.reduce(inside)] = part
    sent, received = np.zeros(len(boxes)), np.zeros(len(boxes))
    for part, box in enumerate(boxes):
        squared = sum(_distance(points[:, axis], box[axis], heights[axis] * periodic[axis]) ** 2 for axis in range(3))
        depth = np.clip(cutoff - np.sqrt(squared), 0, cutoff)
        seen = -np.expm1(-density * math.pi * depth**2 * (3 * cutoff - depth) / 3)
        seen[owner == part] = 0
        received[part] = weight * seen.sum()
        sent += weight * np.bincount(owner, seen, minlength=len(boxes))
    return [Halo(float(out), float(back)) for out, back in zip(sent, received, strict=True)]


Box = list[tuple[float, float]]


def _boxes(heights: Sequence[float], periodic: Sequence[bool], shares: Sequence[float], cutoff: float) -> list[Box]:
    """Half of the parts at a time, across the direction with fewest atoms near the cut; the first cut across a
    direction that repeats is two planes."""
    found: list[Box | None] = [None] * len(shares)
    whole: Box = [(0.0, float(height)) for height in heights]
    todo = [(whole, list(periodic), list(range(len(shares))))]
    while todo:
        box, repeats, parts = todo.pop()
        if len(parts) == 1:
            found[parts[0]] = box
            continue
        first, second = parts[: len(parts) // 2], parts[len(parts) // 2 :]
        lengths = [high - low for low, high in box]
        near = [
            math.prod(lengths[:axis] + lengths[axis + 1 :]) * min(lengths[axis], (2 + 2 * repeats[axis]) * cutoff)
            for axis in range(3)
        ]
        axis = near.index(min(near))
        share = sum(shares[part] for part in first) / max(sum(shares[part] for part in parts), 1e-300)
        low, high = box[axis]
        middle = low + share * (high - low)
        left = [box[place] if place != axis else (low, middle) for place in range(3)]
        right = [box[place] if place != axis else (middle, high) for place in range(3)]
        open_ends = [repeats[place] and place != axis for place in range(3)]
        todo += [(left, open_ends, first), (right, open_ends, second)]
    return [box for box in found if box is not None]


def _points(heights: Sequence[float], atoms: int) -> tuple[np.ndarray, float]:
    """A grid that fills the box, and how many atoms each of its points stands for."""
    spacing = (math.prod(heights) / _POINTS) ** (1 / 3)
    sizes = [max(1, round(height / spacing)) for height in heights]
    axes = [(np.arange(size) + 0.5) * height / size for size, height in zip(sizes, heights, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return grid, atoms / len(grid)


def _distance(along: np.ndarray, interval: tuple[float, float], period: float) -> np.ndarray:
    """Of points from an interval, around a circle where there is a period."""
    low, high = interval
    if not period:
        return np.maximum(np.maximum(low - along, along - high), 0)
    after, before = (along - high) % period, (low - along) % period
    inside = (along >= low) & (along <= high)
    return np.where(inside, 0, np.minimum(after, before))
