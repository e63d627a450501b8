"""Families of structures along one coordinate, through the places where potentials go wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64

from janus_graph import Structure, neighbor_list

Path: TypeAlias = Callable[[float], Structure]
"""The structure at a coordinate; zero is the place of interest."""

# Two atoms that are closer than this are on top of each other, Å.
_SHORTEST_DISTANCE = 0.1


def crossing(structure: Structure, cutoff: float, rng: np.random.Generator) -> Path | None:
    """The structure and its cell scaled so that one of its distances is `cutoff` + x Å.

    The distance is drawn from those that are within a tenth of the cutoff, or is the one nearest to it: the scaled
    structure is as much like the given one as can be. None where there are no two atoms and nothing repeats.
    """
    apart = structure.positions[:, None] - structure.positions
    distances = np.concatenate(
        [neighbor_list(structure, 2 * cutoff).distance, np.linalg.norm(apart, axis=2)[np.triu_indices(len(apart), 1)]]
    )
    distances = distances[distances > _SHORTEST_DISTANCE]
    if not len(distances):
        return None
    ratio = np.abs(np.log(distances / cutoff))
    distance = float(rng.choice(distances[ratio <= max(0.1, ratio.min())]))

    def at(x: float) -> Structure:
        scale = (cutoff + x) / distance
        return dataclasses.replace(structure, positions=scale * structure.positions, cell=scale * structure.cell)

    return at


def bent(
    structure: Structure, near_cutoff: float, rng: np.random.Generator
) -> tuple[Path, Float64[np.ndarray, "3"], Float64[np.ndarray, "2"]]:
    """A triatomic of elements of the structure whose middle atom is x Å off the straight line between the others.

    Its ends are near each other too, so that besides the angle of 180° in the middle they see angles of 0°.

    Returns:
        The path, the direction in which the middle atom moves, and the two bond lengths, Å.
    """
    numbers = rng.choice(structure.atomic_numbers, size=3)
    lengths = near_cutoff * rng.uniform(0.25, 0.45, size=2)
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    along, across = axes[0], axes[1]

    def at(x: float) -> Structure:
        positions = np.stack([-lengths[0] * along, x * across, lengths[1] * along])
        return Structure(numbers, positions, np.zeros((3, 3)), np.zeros(3, dtype=bool), task=structure.task)

    return at, across, lengths
