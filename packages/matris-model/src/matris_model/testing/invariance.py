"""Law 1: where a structure is, how it is turned, its atoms' order and its cell's vectors mean nothing to the energy."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float64

from janus_graph import Structure
from matris_model.testing.candidate import Candidate, Values, require_same


def unchanged_by_translation(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """A structure that is moved as a whole has the same energy, forces and stress."""
    moved = dataclasses.replace(structure, positions=structure.positions + rng.uniform(-9.0, 9.0, size=3))
    require_same("translation", candidate.alone(moved), candidate.alone(structure), structure)


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
    require_same("permutation", candidate.alone(permuted), expected, structure)


def unchanged_by_wrapping(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """Atoms that are moved by lattice vectors, each by others, change nothing."""
    translations = (rng.integers(-3, 4, size=(len(structure), 3)) * structure.periodic) @ structure.cell
    moved = dataclasses.replace(structure, positions=structure.positions + translations)
    require_same("wrapping", candidate.alone(moved), candidate.alone(structure), structure)


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
    require_same("choice of lattice vectors", candidate.alone(equivalent), candidate.alone(structure), structure)


def _orthogonal(rng: np.random.Generator, determinant: int) -> Float64[np.ndarray, "3 3"]:
    matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix[:, 0] *= determinant * np.sign(np.linalg.det(matrix))
    return matrix


def _require_covariance(law: str, candidate: Candidate, structure: Structure, turn: np.ndarray) -> None:
    turned = dataclasses.replace(structure, positions=structure.positions @ turn, cell=structure.cell @ turn)
    before = candidate.alone(structure)
    expected = Values(before.energy, before.forces @ turn, turn.T @ before.stress @ turn)
    require_same(law, candidate.alone(turned), expected, structure)
