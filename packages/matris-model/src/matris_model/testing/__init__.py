"""Laws that every interatomic potential obeys, to put a model of your own through.

Each law is a function of its own, for tests that draw their own structures; `check_potential` runs them all. Potentials
must compute in float64. Nothing here needs a test framework: a broken law raises `AssertionError` and says where.
"""

from matris_model.testing.candidate import BatchLaw, Candidate, PotentialLaw, Values
from matris_model.testing.check import BATCH_LAWS, POTENTIAL_LAWS, check_potential
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
from matris_model.testing.extensivity import far_fragments_add_up, supercells_add_up
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

__all__ = [
    "BATCH_LAWS",
    "POTENTIAL_LAWS",
    "BatchLaw",
    "Candidate",
    "PotentialLaw",
    "Values",
    "bending_is_harmonic",
    "check_potential",
    "derivatives_are_exact",
    "derivatives_are_exact_at_flat_angles",
    "derivatives_are_exact_at_the_cutoffs",
    "elements_are_defined_or_refused",
    "far_fragments_add_up",
    "follows_a_permutation",
    "idle_experts_are_never_read",
    "nothing_jumps_at_the_cutoff",
    "nothing_jumps_at_the_near_cutoff",
    "parameter_gradients_are_exact",
    "same_however_it_is_split",
    "same_in_every_batch",
    "supercells_add_up",
    "trial_structures",
    "turns_with_a_reflection",
    "turns_with_a_rotation",
    "unchanged_by_the_choice_of_lattice_vectors",
    "unchanged_by_translation",
    "unchanged_by_wrapping",
]
