"""What the planner knows of data: how much there is of each structure, and how large it is; no positions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from janus_graph import Structure, neighbor_lists
from janus_train.failure import UserError

T = TypeVar("T")

# Atoms whose edges are held at a time while they are only counted.
_ATOMS_AT_A_TIME = 4096
# A direction without any extent (a flat molecule) is taken to be as thick as an atom, Å.
_THINNEST = 2.0


@dataclass(frozen=True)
class StructureSize:
    """How much there is of a structure.

    Attributes:
        atoms: of each atomic number.
        edges: by the atomic number of their centre.
        neighbours: how many atoms have how many edges.
        near: how many atoms have how many near edges.
        heights: of the cell over its faces, or the extent of the atoms where these do not repeat, Å.
        periodic: in which of these directions it repeats without a gap.
    """

    atoms: Mapping[int, int]
    edges: Mapping[int, int]
    neighbours: Mapping[int, int]
    near: Mapping[int, int]
    heights: tuple[float, float, float]
    periodic: tuple[bool, bool, bool]

    @property
    def all_atoms(self) -> int:
        """Its atoms."""
        return sum(self.atoms.values())

    @property
    def all_edges(self) -> int:
        """Its edges."""
        return sum(self.edges.values())

    @property
    def near_pairs(self) -> int:
        """Its ordered pairs of near edges with one centre."""
        return sum(atoms * near * (near - 1) for near, atoms in self.near.items())


@dataclass(frozen=True)
class DataStatistics:
    """Sizes of the structures of a data set, or of a sample of it.

    Attributes:
        sizes: one for each structure.
        cutoff: edges are shorter, Å.
        near_cutoff: near edges are shorter, Å.
    """

    sizes: tuple[StructureSize, ...]
    cutoff: float
    near_cutoff: float

    def atoms_of_element(self, elements: int) -> np.ndarray:
        """Atoms of each atomic number below `elements`."""
        found = np.zeros(elements, dtype=np.int64)
        for size in self.sizes:
            for number, atoms in size.atoms.items():
                found[number] += atoms
        return found

    def save(self, path: Path) -> None:
        """Writes them as JSON."""
        path.write_text(json.dumps(asdict(self)))


def data_statistics(structures: Sequence[Structure], cutoff: float, near_cutoff: float) -> DataStatistics:
    """The sizes of structures; edges are looked for, counted and let go."""
    sizes: list[StructureSize] = []
    part = np.cumsum([len(structure) for structure in structures]) // _ATOMS_AT_A_TIME
    for number in np.unique(part):
        some = [structure for structure, own in zip(structures, part, strict=True) if own == number]
        for structure, listed in zip(some, neighbor_lists(some, cutoff), strict=True):
            near = listed.centre[listed.distance < near_cutoff]
            sizes.append(_size(structure, listed.centre, near, cutoff))
    return DataStatistics(tuple(sizes), cutoff, near_cutoff)


def _size(structure: Structure, centre: np.ndarray, near: np.ndarray, cutoff: float) -> StructureSize:
    numbers, atoms = structure.atomic_numbers, len(structure)
    heights, periodic = _box(structure, cutoff)
    return StructureSize(
        atoms=_histogram(numbers),
        edges=_histogram(numbers[centre]),
        neighbours=_histogram(np.bincount(centre, minlength=atoms)),
        near=_histogram(np.bincount(near, minlength=atoms)),
        heights=heights,
        periodic=periodic,
    )


def _box(structure: Structure, cutoff: float) -> tuple[tuple[float, float, float], tuple[bool, bool, bool]]:
    """Heights of the box that the atoms fill, and where it repeats; nothing does beyond a gap wider than the cutoff."""
    rows = structure.cell[np.asarray(structure.periodic)]
    basis = np.concatenate([rows, np.linalg.svd(rows)[2][len(rows) :] if len(rows) else np.eye(3)])
    normal = np.linalg.inv(basis).T
    periods = 1 / np.linalg.norm(normal, axis=1)
    fractions = structure.positions @ normal.T
    heights, periodic = [], []
    for direction, period in enumerate(periods.tolist()):
        along, repeats = np.sort(fractions[:, direction]) * period, direction < len(rows)
        extent = float(np.ptp(along)) if len(along) else 0.0
        if repeats and len(along):
            along = np.sort(along % period)
            gap = float(np.diff(along, append=along[0] + period).max())
            extent, repeats = (period - gap, False) if gap > cutoff else (period, True)
        heights.append(max(extent, _THINNEST))
        periodic.append(repeats)
    return _three(heights), _three(periodic)


def _three(values: Iterable[T]) -> tuple[T, T, T]:
    x, y, z = values
    return x, y, z


def load_statistics(path: Path) -> DataStatistics:
    """What `save` wrote.

    Raises:
        UserError: no such file, or something else in it.
    """
    try:
        content = json.loads(path.read_text())
        sizes = tuple(
            StructureSize(
                **{name: {int(key): int(value) for key, value in size[name].items()} for name in _TABLES},
                heights=_three(map(float, size["heights"])),
                periodic=_three(map(bool, size["periodic"])),
            )
            for size in content["sizes"]
        )
        if not sizes:
            raise ValueError("no structures")
        return DataStatistics(sizes, float(content["cutoff"]), float(content["near_cutoff"]))
    except OSError as error:
        raise UserError(f"cannot read statistics from {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} holds no statistics as `janus-train plan --save-statistics` writes them: {error!r}"
        ) from error


_TABLES = ("atoms", "edges", "neighbours", "near")


def _histogram(values: np.ndarray) -> dict[int, int]:
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
