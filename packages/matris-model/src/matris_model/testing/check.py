"""All laws, and the check that puts a potential through them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from janus_graph import Potential, Structure
from matris_model.testing.candidate import BatchLaw, Candidate, PotentialLaw
from matris_model.testing.continuity import (
    bending_is_harmonic,
    nothing_jumps_at_the_cutoff,
    nothing_jumps_at_the_near_cutoff,
)
from matris_model.testing.derivatives import (
    derivatives_are_exact,
    derivatives_are_exact_at_flat_angles,
    derivatives_are_exact_at_the_cutoffs,
)
from matris_model.testing.elements import elements_are_defined_or_refused, idle_experts_are_never_read
from matris_model.testing.extensivity import supercells_add_up
from matris_model.testing.gradients import parameter_gradients_are_exact
from matris_model.testing.invariance import (
    follows_a_permutation,
    turns_with_a_reflection,
    turns_with_a_rotation,
    unchanged_by_the_choice_of_lattice_vectors,
    unchanged_by_translation,
    unchanged_by_wrapping,
)
from matris_model.testing.parts import same_however_it_is_split, same_in_every_batch
from matris_model.testing.structures import trial_structures

POTENTIAL_LAWS: tuple[PotentialLaw, ...] = (
    unchanged_by_translation,
    turns_with_a_rotation,
    turns_with_a_reflection,
    follows_a_permutation,
    unchanged_by_wrapping,
    unchanged_by_the_choice_of_lattice_vectors,
    derivatives_are_exact,
    derivatives_are_exact_at_the_cutoffs,
    derivatives_are_exact_at_flat_angles,
    nothing_jumps_at_the_cutoff,
    nothing_jumps_at_the_near_cutoff,
    bending_is_harmonic,
    supercells_add_up,
    same_however_it_is_split,
)
"""All laws about one structure that every potential obeys."""

BATCH_LAWS: tuple[BatchLaw, ...] = (
    same_in_every_batch,
    elements_are_defined_or_refused,
    idle_experts_are_never_read,
    parameter_gradients_are_exact,
)
"""All laws about several structures at once, or about the potential as a whole."""


def check_potential(
    potential: Potential,
    cutoff: float,
    near_cutoff: float,
    structures: Iterable[Structure] | None = None,
    laws: Iterable[PotentialLaw] = POTENTIAL_LAWS,
    batch_laws: Iterable[BatchLaw] = BATCH_LAWS,
) -> None:
    """Puts a potential through the laws: each structure through `laws`, and all of them through `batch_laws`.

    Args:
        potential: `(graph, properties) -> Properties` in float64, with energy, forces and stress. If it is a
            `torch.nn.Module` its parameters' gradients are checked, if it takes a `halo` how it can be split.
        cutoff: of the graphs, Å.
        near_cutoff: of the graphs, Å.
        structures: what to try it on, by default those of `trial_structures()`.
        laws: about one structure. Add `far_fragments_add_up` for a potential whose atoms know nothing of the whole.
        batch_laws: about all of them together.

    Raises:
        AssertionError: a law is broken; the message names it, with what differs and the structure.
    """
    tried = list(trial_structures().values() if structures is None else structures)
    candidate = Candidate(potential, cutoff, near_cutoff)
    for law in laws:
        for structure in tried:
            law(candidate, structure, np.random.default_rng(0))
    for batch_law in batch_laws:
        batch_law(candidate, tried, np.random.default_rng(0))
