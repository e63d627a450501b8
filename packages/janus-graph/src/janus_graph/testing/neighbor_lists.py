"""The naive neighbour list, and the laws that every neighbour list obeys."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeAlias

import numpy as np

from janus_graph.neighbors import NeighborList
from janus_graph.structure import Structure
from janus_graph.testing.structures import sample_structures

NeighborListFunction: TypeAlias = Callable[[Structure, float], NeighborList]
"""Anything that could stand in for `janus_graph.neighbor_list`."""

NeighborListLaw: TypeAlias = Callable[[NeighborListFunction, Structure, float, np.random.Generator], None]
"""Raises `AssertionError` where the function breaks the law; the generator draws what the law does at random."""

Edge: TypeAlias = tuple[int, ...]
"""Centre, neighbour and the three components of the shift."""

# Lists that end exactly at a neighbour are asked for only where that neighbour is not on top of the atom, Å.
_SHORTEST_CUTOFF = 1e-3


def brute_force_neighbor_list(structure: Structure, cutoff: float) -> NeighborList:
    """The edges of a structure by looking at every pair of atoms and every image that could be in reach.

    With b the dual basis of the periodic lattice vectors (h_k · b_l = δ_kl), a vector v = x_j − x_i + S h has
    v · b_k = (x_j − x_i) · b_k + S_k. As |v · b_k| ≤ |v| |b_k|, an edge has
    |S_k + (x_j − x_i) · b_k| < cutoff |b_k|; the search is one image wider at both ends. For tests: its time grows
    with atoms² × images.
    """
    cell, positions = structure.cell, structure.positions
    dual = np.zeros((3, 3))
    if structure.periodic.any():
        dual[structure.periodic] = np.linalg.pinv(cell[structure.periodic]).T
    reach = cutoff * np.linalg.norm(dual, axis=1)
    edges: list[tuple[int, int, tuple[int, ...], float]] = []
    for i, j in itertools.product(range(len(structure)), repeat=2):
        difference = positions[j] - positions[i]
        offset = dual @ difference
        lowest = np.where(structure.periodic, np.floor(-offset - reach) - 1, 0).astype(int)
        highest = np.where(structure.periodic, np.ceil(-offset + reach) + 1, 0).astype(int)
        images = itertools.product(*(range(low, high + 1) for low, high in zip(lowest, highest, strict=True)))
        shifts = np.array(list(images))
        # In this order: reversing an edge negates every term, and its rounding with it.
        vectors = difference + ((shifts[:, :1] * cell[0] + shifts[:, 1:2] * cell[1]) + shifts[:, 2:] * cell[2])
        distances = np.sqrt((vectors[:, 0] ** 2 + vectors[:, 1] ** 2) + vectors[:, 2] ** 2)
        for shift, distance in zip(shifts.tolist(), distances.tolist(), strict=True):
            if distance < cutoff and (i != j or any(shift)):
                edges.append((i, j, tuple(shift), distance))
    edges.sort()
    places = {(i, j, *shift): place for place, (i, j, shift, _) in enumerate(edges)}
    return NeighborList(
        centre=np.array([edge[0] for edge in edges], dtype=np.int64),
        neighbour=np.array([edge[1] for edge in edges], dtype=np.int64),
        shift=np.array([edge[2] for edge in edges], dtype=np.int32).reshape(-1, 3),
        distance=np.array([edge[3] for edge in edges], dtype=np.float64),
        reverse=np.array([places[_reverse((i, j, *shift))] for i, j, shift, _ in edges], dtype=np.int64),
    )


def check_neighbor_list(
    function: NeighborListFunction,
    structures: Iterable[Structure] | None = None,
    cutoffs: Iterable[float] = (0.9, 3.0, 5.5),
) -> None:
    """Run a neighbour-list function through every law of `NEIGHBOR_LIST_LAWS`.

    Args:
        function: gives the list of a structure and a cutoff.
        structures: what to try it on, by default `sample_structures()`.
        cutoffs: Å, each tried with each structure.

    Raises:
        AssertionError: a law does not hold; the message names it, with structure, cutoff and edges.
    """
    tried = list(sample_structures().values() if structures is None else structures)
    for structure, cutoff in itertools.product(tried, list(cutoffs)):
        for law in NEIGHBOR_LIST_LAWS:
            law(function, structure, cutoff, np.random.default_rng(0))


def edges_equal_brute_force(
    function: NeighborListFunction, structure: Structure, cutoff: float, _: np.random.Generator
) -> None:
    """The edges and their lengths are those of the naive list."""
    expected = edge_lengths(brute_force_neighbor_list(structure, cutoff))
    _same_edges("edges equal brute force", structure, cutoff, edge_lengths(function(structure, cutoff)), expected)


def edges_are_sorted(
    function: NeighborListFunction, structure: Structure, cutoff: float, _: np.random.Generator
) -> None:
    """Edges come by centre, then neighbour, then shift, each once, none from an atom to itself without a shift."""
    edges = _edges(function(structure, cutoff))
    _require(edges == sorted(set(edges)), "edges are sorted and unique", structure, cutoff, edges)
    itself = [edge for edge in edges if edge[0] == edge[1] and not any(edge[2:])]
    _require(not itself, "no atom is its own neighbour in the same cell", structure, cutoff, itself)


def edges_are_shorter_than_the_cutoff(
    function: NeighborListFunction, structure: Structure, cutoff: float, rng: np.random.Generator
) -> None:
    """A list that ends at a neighbour, or one bit above, holds exactly what is strictly shorter in a longer list."""
    longer = edge_lengths(function(structure, cutoff))
    at = _at_a_neighbour(longer, cutoff, rng)
    for limit in (at, min(float(np.nextafter(at, np.inf)), cutoff)):
        expected = {edge for edge, length in longer.items() if length < limit}
        wrong = sorted(edge_lengths(function(structure, limit)).keys() ^ expected)
        _require(not wrong, "edges are strictly shorter than the cutoff", structure, limit, wrong)


def edges_have_a_reverse(
    function: NeighborListFunction, structure: Structure, cutoff: float, rng: np.random.Generator
) -> None:
    """Every edge is there in the other direction, with the same length, also where a neighbour sits at the cutoff."""
    for limit in (cutoff, _at_a_neighbour(edge_lengths(function(structure, cutoff)), cutoff, rng)):
        found = edge_lengths(function(structure, limit))
        alone = [edge for edge, length in found.items() if found.get(_reverse(edge)) != length]
        _require(not alone, "every edge has its reverse", structure, limit, alone)


def reverses_are_found_where_they_are(
    function: NeighborListFunction, structure: Structure, cutoff: float, _: np.random.Generator
) -> None:
    """Each edge says where the same edge is in the other direction; the reverse of the reverse is the edge."""
    listed = function(structure, cutoff)
    edges = _edges(listed)
    reverse = listed.reverse.tolist()
    _require(len(reverse) == len(edges), "every edge has a reverse", structure, cutoff, edges[len(reverse) :])
    wrong = [
        edge
        for edge, place in zip(edges, reverse, strict=True)
        if not 0 <= place < len(edges) or edges[place] != _reverse(edge)
    ]
    _require(not wrong, "the reverse of an edge is the edge in the other direction", structure, cutoff, wrong)


def edges_do_not_depend_on_wrapping(
    function: NeighborListFunction, structure: Structure, cutoff: float, rng: np.random.Generator
) -> None:
    """Atoms moved by lattice vectors, inside the cell or out of it, keep their neighbours, with other shifts."""
    moves = rng.integers(-3, 4, size=(len(structure), 3)) * structure.periodic
    moved = _changed(structure, positions=structure.positions + moves @ structure.cell)
    expected = {
        (i, j, *(np.array(shift) + moves[i] - moves[j]).tolist()): length
        for (i, j, *shift), length in edge_lengths(function(structure, cutoff)).items()
    }
    _same_edges("edges do not depend on wrapping", moved, cutoff, edge_lengths(function(moved, cutoff)), expected)


def edges_do_not_depend_on_translation(
    function: NeighborListFunction, structure: Structure, cutoff: float, rng: np.random.Generator
) -> None:
    """A structure that is moved as a whole keeps its edges and shifts."""
    moved = _changed(structure, positions=structure.positions + rng.uniform(-9.0, 9.0, size=3))
    expected = edge_lengths(function(structure, cutoff))
    _same_edges("edges do not depend on translation", moved, cutoff, edge_lengths(function(moved, cutoff)), expected)


def edges_do_not_depend_on_rotation(
    function: NeighborListFunction, structure: Structure, cutoff: float, rng: np.random.Generator
) -> None:
    """A structure that is rotated or mirrored together with its cell keeps its edges and shifts."""
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotated = _changed(structure, positions=structure.positions @ rotation, cell=structure.cell @ rotation)
    expected = edge_lengths(function(structure, cutoff))
    _same_edges("edges do not depend on rotation", rotated, cutoff, edge_lengths(function(rotated, cutoff)), expected)


def edges_follow_a_permutation(
    function: NeighborListFunction, structure: Structure, cutoff: float, rng: np.random.Generator
) -> None:
    """Renaming the atoms renames the edges and changes nothing else."""
    order = rng.permutation(len(structure))
    place = np.argsort(order)
    permuted = _changed(structure, atomic_numbers=structure.atomic_numbers[order], positions=structure.positions[order])
    expected = {
        (int(place[i]), int(place[j]), *shift): length
        for (i, j, *shift), length in edge_lengths(function(structure, cutoff)).items()
    }
    _same_edges("edges follow a permutation", permuted, cutoff, edge_lengths(function(permuted, cutoff)), expected)


def edges_do_not_depend_on_the_choice_of_lattice_vectors(
    function: NeighborListFunction, structure: Structure, cutoff: float, rng: np.random.Generator
) -> None:
    """Other vectors of the same lattice, h → U h with U whole and of determinant ±1, name the same neighbours."""
    change = np.eye(3, dtype=np.int64)
    periodic = np.flatnonzero(structure.periodic)
    if len(periodic) >= 2:
        for _ in range(3):
            row, other = rng.choice(periodic, size=2, replace=False)
            change[row] += rng.choice([-1, 1]) * change[other]
    change[periodic] *= rng.choice([-1, 1], size=(len(periodic), 1))
    equivalent = _changed(
        structure, cell=np.where(structure.periodic[:, None], change @ structure.cell, structure.cell)
    )
    # The translation S' U h is S h with S = S' U.
    found = {
        (i, j, *(np.array(shift) @ change).tolist()): length
        for (i, j, *shift), length in edge_lengths(function(equivalent, cutoff)).items()
    }
    expected = edge_lengths(function(structure, cutoff))
    _same_edges("edges do not depend on the choice of lattice vectors", equivalent, cutoff, found, expected)


def edges_of_a_supercell_are_copies(
    function: NeighborListFunction, structure: Structure, cutoff: float, rng: np.random.Generator
) -> None:
    """Each copy of an atom in a supercell has the neighbours of the atom it is a copy of."""
    times = np.where(structure.periodic, rng.integers(1, 3, size=3), 1)
    copies = np.array(list(itertools.product(*(range(n) for n in times))))
    atoms = len(structure)
    supercell = _changed(
        structure,
        atomic_numbers=np.tile(structure.atomic_numbers, len(copies)),
        positions=(structure.positions + (copies @ structure.cell)[:, None]).reshape(-1, 3),
        cell=structure.cell * times[:, None],
    )
    expected = {}
    for (i, j, *shift), length in edge_lengths(function(structure, cutoff)).items():
        for index, copy in enumerate(copies):
            translation, place = np.divmod(copy + np.array(shift), times)
            target = int(np.ravel_multi_index(place, times))
            expected[(index * atoms + i, target * atoms + j, *translation.tolist())] = length
    found = edge_lengths(function(supercell, cutoff))
    _same_edges("edges of a supercell are copies", supercell, cutoff, found, expected)


NEIGHBOR_LIST_LAWS: tuple[NeighborListLaw, ...] = (
    edges_equal_brute_force,
    edges_are_sorted,
    edges_are_shorter_than_the_cutoff,
    edges_have_a_reverse,
    reverses_are_found_where_they_are,
    edges_do_not_depend_on_wrapping,
    edges_do_not_depend_on_translation,
    edges_do_not_depend_on_rotation,
    edges_follow_a_permutation,
    edges_do_not_depend_on_the_choice_of_lattice_vectors,
    edges_of_a_supercell_are_copies,
)
"""All laws of a neighbour list, each on its own, for a test that draws its own structures."""


def edge_lengths(edges: NeighborList) -> dict[Edge, float]:
    """The list as a mapping from edge to length, Å."""
    return dict(zip(_edges(edges), edges.distance.tolist(), strict=True))


def _edges(edges: NeighborList) -> list[Edge]:
    columns = np.column_stack([edges.centre, edges.neighbour, edges.shift.reshape(-1, 3)])
    return [tuple(row) for row in columns.tolist()]


def _reverse(edge: Edge) -> Edge:
    i, j, *shift = edge
    return (j, i, *(-s for s in shift))


def _changed(structure: Structure, **changes: Any) -> Structure:
    return dataclasses.replace(structure, **changes)


def _at_a_neighbour(lengths: dict[Edge, float], otherwise: float, rng: np.random.Generator) -> float:
    """A cutoff at which there is an edge, if there is any."""
    candidates = [length for length in lengths.values() if length > _SHORTEST_CUTOFF]
    return float(rng.choice(candidates)) if candidates else otherwise


def _same_edges(
    law: str, structure: Structure, cutoff: float, found: dict[Edge, float], expected: dict[Edge, float]
) -> None:
    """Equal as sets, with lengths equal to rounding; an edge may be missing where rounding decides if it is shorter."""
    size = cutoff + np.abs(structure.positions).max() + np.abs(structure.cell).max()
    tolerance = 1e3 * float(np.finfo(np.float64).eps) * size
    either = {**found, **expected}
    differing = [
        edge
        for edge, length in either.items()
        if (edge in found and edge in expected and abs(found[edge] - expected[edge]) > tolerance)
        or ((edge in found) != (edge in expected) and abs(length - cutoff) > tolerance)
    ]
    missing = [edge for edge in differing if edge not in found]
    _require(not differing, f"{law} ({len(missing)} missing)", structure, cutoff, differing)


def _require(holds: bool, law: str, structure: Structure, cutoff: float, edges: Collection[Edge]) -> None:
    if not holds:
        raise AssertionError(
            f"broken law: {law}; {len(edges)} edges at fault, first {list(edges)[:3]} (centre, neighbour, shift); "
            f"cutoff {cutoff!r} Å, {structure}"
        )
