"""All laws, and the check that puts a potential through them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from janus_graph import Potential, Structure
from matris_model.testing import continuity, derivatives, elements, extensivity, gradients, invariance, parts
from matris_model.testing.candidate import BatchLaw, Candidate, PotentialLaw
from matris_model.testing.structures import trial_structures

POTENTIAL_LAWS: tuple[PotentialLaw, ...] = (
    invariance.unchanged_by_translation,
    invariance.turns_with_a_rotation,
    invariance.turns_with_a_reflection,
    invariance.follows_a_permutation,
    invariance.unchanged_by_wrapping,
    invariance.unchanged_by_the_choice_of_lattice_vectors,
    derivatives.derivatives_are_exact,
    derivatives.derivatives_are_exact_at_the_cutoffs,
    derivatives.derivatives_are_exact_at_flat_angles,
    continuity.nothing_jumps_at_the_cutoff,
    continuity.nothing_jumps_at_the_near_cutoff,
    continuity.bending_is_harmonic,
    extensivity.supercells_add_up,
    parts.same_however_it_is_split,
)
"""All laws about one structure that every potential obeys."""

BATCH_LAWS: tuple[BatchLaw, ...] = (
    parts.same_in_every_batch,
    elements.elements_are_defined_or_refused,
    elements.idle_experts_are_never_read,
    gradients.parameter_gradients_are_exact,
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
