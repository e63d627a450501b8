"""Laws that every interatomic potential obeys, to put a model of your own through.

Each law is a function of its own, for tests that draw their own structures; `check_potential` runs them all. Potentials
must compute in float64. Nothing here needs a test framework: a broken law raises `AssertionError` and says where.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float64

from janus_graph import Potential, Structure, build_graph
from janus_graph.testing import sample_structures

# Of the size of what is compared. What a transformed structure adds is rounding in its coordinates, times how fast the
# potential changes with them.
_TOLERANCE = 1e6 * float(np.finfo(np.float64).eps)

# Å, or parts of a length: small beside all that is physical, large beside the rounding of energies.
_STEP = 2e-5


@dataclass(frozen=True, eq=False)
class Values:
    """What a potential says about one structure, its atoms in the order they were given in: eV, eV/Å, eV/Å³."""

    energy: float
    forces: Float64[np.ndarray, "atoms 3"]
    stress: Float64[np.ndarray, "3 3"]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A potential and the cutoffs (Å) of the graphs it wants."""

    potential: Potential
    cutoff: float
    near_cutoff: float

    def __call__(self, structures: Sequence[Structure]) -> list[Values]:
        """Energy, forces and stress of structures that share a batch."""
        graph = build_graph(structures, self.cutoff, self.near_cutoff)
        with torch.no_grad():
            found = self.potential(graph, ("energy", "forces", "stress"))
        if found.forces is None or found.stress is None:
            raise AssertionError("the potential was asked for forces and stress and gave None for one of them")
        forces = np.split(
            graph.in_input_order(found.forces).cpu().numpy(), np.cumsum([len(structure) for structure in structures])
        )
        return [
            Values(float(energy), force, stress.cpu().numpy())
            for energy, force, stress in zip(found.energy, forces, found.stress, strict=False)
        ]

    def alone(self, structure: Structure) -> Values:
        """Energy, forces and stress of a structure that has the batch to itself."""
        return self([structure])[0]


PotentialLaw: TypeAlias = Callable[[Candidate, Structure, np.random.Generator], None]
"""Raises `AssertionError` where the candidate breaks the law; the generator draws what the law does at random."""


def check_potential(
    potential: Potential, cutoff: float, near_cutoff: float, structures: Iterable[Structure] | None = None
) -> None:
    """Puts a potential through every law of `POTENTIAL_LAWS`, and through `same_in_every_batch`.

    Args:
        potential: `(graph, properties) -> Properties` in float64, with energy, forces and stress.
        cutoff: of the graphs, Å.
        near_cutoff: of the graphs, Å.
        structures: what to try it on, by default `janus_graph.testing.sample_structures()`, all of task 0.

    Raises:
        AssertionError: a law is broken; the message names it, with what differs and the structure.
    """
    if structures is None:
        tried = [dataclasses.replace(structure, task=0) for structure in sample_structures().values()]
    else:
        tried = list(structures)
    candidate = Candidate(potential, cutoff, near_cutoff)
    for structure in tried:
        for law in POTENTIAL_LAWS:
            law(candidate, structure, np.random.default_rng(0))
    same_in_every_batch(candidate, tried, np.random.default_rng(0))


def unchanged_by_translation(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """A structure that is moved as a whole has the same energy, forces and stress."""
    moved = dataclasses.replace(structure, positions=structure.positions + rng.uniform(-9.0, 9.0, size=3))
    _require_same("translation", candidate.alone(moved), candidate.alone(structure), structure)


def turns_with_a_rotation(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """A rotated structure has the same energy, and rotated forces and stress."""
    _require_covariance("rotation", candidate, structure, _orthogonal(rng, determinant=1))


def turns_with_a_reflection(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """The mirror image of a structure has the same energy, and mirrored forces and stress."""
    _require_covariance("reflection", candidate, structure, _orthogonal(rng, determinant=-1))


def follows_a_permutation(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """Renaming the atoms renames the forces and changes nothing else."""
    order = rng.permutation(len(structure))
    permuted = dataclasses.replace(
        structure, atomic_numbers=structure.atomic_numbers[order], positions=structure.positions[order]
    )
    expected = candidate.alone(structure)
    expected = dataclasses.replace(expected, forces=expected.forces[order])
    _require_same("permutation", candidate.alone(permuted), expected, structure)


def unchanged_by_wrapping(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """Atoms that are moved by lattice vectors, each by others, change nothing."""
    translations = (rng.integers(-3, 4, size=(len(structure), 3)) * structure.periodic) @ structure.cell
    moved = dataclasses.replace(structure, positions=structure.positions + translations)
    _require_same("wrapping", candidate.alone(moved), candidate.alone(structure), structure)


def unchanged_by_the_choice_of_lattice_vectors(
    candidate: Candidate, structure: Structure, rng: np.random.Generator
) -> None:
    """Other vectors of the same lattice, left-handed ones too, and any vector where nothing repeats, change nothing."""
    change = np.eye(3)
    periodic = np.flatnonzero(structure.periodic)
    if len(periodic) >= 2:
        for _ in range(2):
            row, other = rng.choice(periodic, size=2, replace=False)
            change[row] += rng.choice([-1, 1]) * change[other]
    change[periodic] *= rng.choice([-1, 1], size=(len(periodic), 1))
    unused = rng.uniform(-5.0, 5.0, size=(3, 3))
    equivalent = dataclasses.replace(
        structure, cell=np.where(structure.periodic[:, None], change @ structure.cell, unused)
    )
    _require_same("choice of lattice vectors", candidate.alone(equivalent), candidate.alone(structure), structure)


def supercells_add_up(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """A cell doubled along one direction has twice the energy, the same stress, and every copy the same forces."""
    for direction in np.flatnonzero(structure.periodic):
        translation = structure.cell[direction]
        cell = structure.cell.copy()
        cell[direction] *= 2
        order = rng.permutation(2 * len(structure))
        doubled = Structure(
            np.tile(structure.atomic_numbers, 2)[order],
            np.concatenate([structure.positions, structure.positions + translation])[order],
            cell,
            structure.periodic,
            structure.charge,
            structure.spin,
            structure.task,
        )
        one = candidate.alone(structure)
        expected = Values(2 * one.energy, np.tile(one.forces, (2, 1))[order], one.stress)
        _require_same(f"supercell along direction {direction}", candidate.alone(doubled), expected, structure)


def derivatives_are_exact(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """Forces and stress are the derivatives of the energy, by finite differences in every coordinate and strain."""

    def moved(place: int, step: float) -> Structure:
        positions = structure.positions.copy()
        positions.flat[place] += step
        return dataclasses.replace(structure, positions=positions)

    def strained(place: int, step: float) -> Structure:
        strain = np.zeros(9)
        strain[place] = step
        deformation = np.eye(3) + (strain.reshape(3, 3) + strain.reshape(3, 3).T) / 2
        return dataclasses.replace(
            structure, positions=structure.positions @ deformation, cell=structure.cell @ deformation
        )

    found = candidate.alone(structure)
    slopes, uncertain = _slopes(candidate, moved, 3 * len(structure))
    forces = -slopes.reshape(-1, 3)
    _require_close("forces are minus the slope of the energy", found.forces, forces, uncertain, structure)
    if structure.has_volume:
        volume = float(abs(np.linalg.det(structure.cell)))
        slopes, uncertain = _slopes(candidate, strained, 9)
        stress = slopes.reshape(3, 3)
        _require_close(
            "stress times volume is the slope in strain", volume * found.stress, stress, uncertain, structure
        )
    else:
        nothing = np.zeros((3, 3))
        _require_close("stress is zero where not everything repeats", found.stress, nothing, 0.0, structure)


POTENTIAL_LAWS: tuple[PotentialLaw, ...] = (
    unchanged_by_translation,
    turns_with_a_rotation,
    turns_with_a_reflection,
    follows_a_permutation,
    unchanged_by_wrapping,
    unchanged_by_the_choice_of_lattice_vectors,
    supercells_add_up,
    derivatives_are_exact,
)
"""All laws about one structure."""


def same_in_every_batch(candidate: Candidate, structures: Sequence[Structure], rng: np.random.Generator) -> None:
    """What else is in the batch, and in what order, changes nothing for a structure."""
    alone = [candidate.alone(structure) for structure in structures]
    for order in (np.arange(len(structures)), rng.permutation(len(structures))):
        together = candidate([structures[place] for place in order])
        for place, found in zip(order, together, strict=True):
            _require_same("what else is in the batch", found, alone[place], structures[place])


def _slopes(
    candidate: Candidate, changed: Callable[[int, float], Structure], places: int
) -> tuple[Float64[np.ndarray, "places"], float]:
    """Slopes of the energy in each place, extrapolated from central differences of two steps, and their uncertainty.

    The two differ by four thirds of the error of the worse; the better one is extrapolated from there, so their whole
    difference is a generous bound, however sharply the potential bends. Rounding of the energy comes on top.
    """
    offsets = np.array([-2, -1, 1, 2]) * _STEP
    energies = np.array(
        [[value.energy for value in candidate([changed(place, x) for x in offsets])] for place in range(places)]
    )
    wide = (energies[:, 3] - energies[:, 0]) / (4 * _STEP)
    narrow = (energies[:, 2] - energies[:, 1]) / (2 * _STEP)
    rounding = 1000 * float(np.finfo(np.float64).eps) * (1 + np.abs(energies).max()) / _STEP
    return (4 * narrow - wide) / 3, float(np.abs(narrow - wide).max() + rounding)


def _orthogonal(rng: np.random.Generator, determinant: int) -> Float64[np.ndarray, "3 3"]:
    matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix[:, 0] *= determinant * np.sign(np.linalg.det(matrix))
    return matrix


def _require_covariance(law: str, candidate: Candidate, structure: Structure, turn: np.ndarray) -> None:
    turned = dataclasses.replace(structure, positions=structure.positions @ turn, cell=structure.cell @ turn)
    before = candidate.alone(structure)
    expected = Values(before.energy, before.forces @ turn, turn.T @ before.stress @ turn)
    _require_same(law, candidate.alone(turned), expected, structure)


def _require_same(law: str, found: Values, expected: Values, structure: Structure) -> None:
    allowed = _TOLERANCE * (1 + abs(expected.energy) + float(np.abs(expected.forces).max()))
    _require_close(f"{law}: energy (eV)", np.array(found.energy), np.array(expected.energy), allowed, structure)
    _require_close(f"{law}: forces (eV/Å)", found.forces, expected.forces, allowed, structure)
    _require_close(f"{law}: stress (eV/Å³)", found.stress, expected.stress, allowed, structure)


def _require_close(law: str, found: np.ndarray, expected: np.ndarray, allowed: float, structure: Structure) -> None:
    error = np.abs(found - expected)
    if not error.max() <= allowed:
        worst = int(np.argmax(np.nan_to_num(error, nan=np.inf)))
        place = tuple(int(i) for i in np.unravel_index(worst, error.shape))
        raise AssertionError(
            f"broken law: {law} at {place} is {found[place]:.12g} and should be {expected[place]:.12g}, "
            f"off by {error[place]:.2g} where {allowed:.2g} is allowed: {structure}"
        )
