"""Law 4: energies add up, of copies in a larger cell and of fragments out of each other's reach."""

from __future__ import annotations

import dataclasses

import numpy as np

from janus_graph import Structure
from matris_model.testing.candidate import Candidate, Values, require_same


def supercells_add_up(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """A cell doubled along one direction has twice the energy, the same stress, and every copy the same forces."""
    for direction in np.flatnonzero(structure.periodic):
        translation = structure.cell[direction]
        cell = structure.cell.copy()
        cell[direction] *= 2
        order = rng.permutation(2 * len(structure))
        doubled = dataclasses.replace(
            structure,
            atomic_numbers=np.tile(structure.atomic_numbers, 2)[order],
            positions=np.concatenate([structure.positions, structure.positions + translation])[order],
            cell=cell,
        )
        one = candidate.alone(structure)
        expected = Values(2 * one.energy, np.tile(one.forces, (2, 1))[order], one.stress)
        require_same(f"supercell along direction {direction}", candidate.alone(doubled), expected, structure)


def far_fragments_add_up(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """The atoms of a structure, and those of one element once more far away, have energies and forces as if alone.

    Without charge and as singlets, for those belong to the whole. Not in `POTENTIAL_LAWS`: a potential whose atoms know
    the mean composition breaks it by design.
    """
    everything = np.arange(len(structure))
    some = np.flatnonzero(structure.atomic_numbers == rng.choice(structure.atomic_numbers))
    extent = float(np.ptp(structure.positions, axis=0).max())
    away = np.array([extent + 3 * candidate.cutoff, 0.0, 0.0])

    def fragment(chosen: np.ndarray, moves: np.ndarray) -> Structure:
        numbers, positions = structure.atomic_numbers[chosen], structure.positions[chosen] + moves
        return Structure(numbers, positions, np.zeros((3, 3)), np.zeros(3, dtype=bool), task=structure.task)

    moves = np.repeat([np.zeros(3), away], [len(everything), len(some)], axis=0)
    one, other = (candidate.alone(fragment(chosen, np.zeros(3))) for chosen in (everything, some))
    expected = Values(one.energy + other.energy, np.concatenate([one.forces, other.forces]), one.stress)
    both = candidate.alone(fragment(np.concatenate([everything, some]), moves))
    require_same("far fragments", both, expected, structure)
