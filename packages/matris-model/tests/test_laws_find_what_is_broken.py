"""The laws pass potentials that are right, and each of them fails ones that are wrong in its way."""

import numpy as np
import pytest
import torch

from broken_potentials import (
    CUTOFF,
    HONEST,
    NEAR_CUTOFF,
    Embedded,
    OneParameter,
    Refuses,
    WithExperts,
    angles_clamped,
    chirality,
    conservative,
    fading_with,
    honest,
    in_single_precision,
    near_pairs,
    pair_energy,
    per_atom,
    with_changed,
    with_honest,
)
from janus_graph.lennard_jones import LennardJones
from matris_model import testing as laws
from matris_model.testing import BATCH_LAWS, POTENTIAL_LAWS, check_potential, far_fragments_add_up
from model_cases import EVERYWHERE, molecule, random_structure

# A crystal without any symmetry, a molecule of one element, and one whose elements have other experts.
STRUCTURES = [
    random_structure(7, 3, (2, 2, 1), EVERYWHERE, skewed=True),
    molecule([6, 6, 6], [[0, 0, 0], [0, 0, 1.4], [0, 1.1, 2.2]]),
    molecule([3, 9], [[0, 0, 0], [0, 0, 1]]),
]

BROKEN = {
    "a field that oscillates": (
        laws.unchanged_by_translation, with_honest(lambda g: per_atom(g, g.positions[:, 0].sin()))
    ),
    "coordinates in single precision": (laws.unchanged_by_translation, conservative(in_single_precision)),
    "a direction that is special": (
        laws.turns_with_a_rotation, conservative(lambda g: pair_energy(g, lambda v, r, _: v[:, 2] ** 2))
    ),
    "handedness": (laws.turns_with_a_reflection, with_honest(chirality)),
    "an atom that is special": (
        laws.follows_a_permutation,
        conservative(lambda g: pair_energy(g, lambda v, r, _: 1.0 + (g.input_index[g.edge_index[0]] == 0).double())),
    ),
    "shifts that count": (
        laws.unchanged_by_wrapping,
        conservative(lambda g: pair_energy(g, lambda v, r, _: 1 + g.edge_shifts.abs().sum(dim=1))),
    ),
    "lattice vectors that count": (
        laws.unchanged_by_the_choice_of_lattice_vectors, with_honest(lambda g: g.cells.square().sum(dim=(1, 2)))
    ),
    "forces a thousandth too large": (laws.derivatives_are_exact, with_changed("forces", 1.001)),
    "stress of the other sign": (laws.derivatives_are_exact, with_changed("stress", -1)),
    "an energy that ends in a step": (laws.derivatives_are_exact_at_the_cutoffs, fading_with(torch.ones_like)),
    "an energy that ends in a kink": (laws.derivatives_are_exact_at_the_cutoffs, fading_with(lambda x: x)),
    "a three-body energy that ends in a kink": (
        laws.derivatives_are_exact_at_the_cutoffs,
        with_honest(lambda g: near_pairs(g, torch.square, lambda r, cutoff: 1 - r / cutoff)),
    ),
    "angles by acos": (laws.derivatives_are_exact_at_flat_angles, with_honest(lambda g: near_pairs(g, torch.acos))),
    "a step at the cutoff": (laws.nothing_jumps_at_the_cutoff, fading_with(torch.ones_like)),
    "a small step at the cutoff": (laws.nothing_jumps_at_the_cutoff, fading_with(lambda x: x**3 + 1e-6)),
    "a kink at the cutoff": (laws.nothing_jumps_at_the_cutoff, fading_with(lambda x: x)),
    "forces that end like a root": (laws.nothing_jumps_at_the_cutoff, fading_with(lambda x: x.clamp(min=0) ** 1.5)),
    "forces that end steeply": (laws.nothing_jumps_at_the_cutoff, fading_with(lambda x: 1e-3 * x.clamp(min=0) ** 1.6)),
    "a kink at the near cutoff": (
        laws.nothing_jumps_at_the_near_cutoff,
        with_honest(lambda g: near_pairs(g, torch.square, lambda r, cutoff: 1 - r / cutoff)),
    ),
    "angles by clamped acos": (laws.bending_is_harmonic, with_honest(lambda g: near_pairs(g, angles_clamped))),
    "a kink at 180°": (
        laws.bending_is_harmonic,
        with_honest(lambda g: near_pairs(g, lambda c: ((1 + c).clamp(min=0) + 1e-12).sqrt())),
    ),
    "a square of the energy": (laws.supercells_add_up, conservative(lambda g: honest(g).square())),
    "a mean over the structure": (
        far_fragments_add_up,
        conservative(lambda g: honest(g) * (1 + g.composition[:, 9])),
    ),
    "the number of atoms that are here": (laws.same_however_it_is_split, Embedded("knows how many atoms are here")),
    "an exchange more than the whole": (laws.same_however_it_is_split, Embedded("asks again where there are ghosts")),
    "an exchange less than the whole": (
        laws.same_however_it_is_split, Embedded("asks for nothing where there are no atoms")
    ),
    "a constant of every part": (laws.same_however_it_is_split, Embedded("energy of every part")),
    "what else is in the batch": (
        laws.same_in_every_batch, conservative(lambda g: honest(g) * (1 + 0.1 * len(g.elements)))
    ),
    "an element without a value": (
        laws.elements_are_defined_or_refused,
        with_honest(lambda g: per_atom(g, torch.where(g.atomic_numbers == 9, torch.nan, 0.0).double())),
    ),
    "a force on one atom": (
        laws.elements_are_defined_or_refused, with_honest(lambda g: per_atom(g, g.positions[:, 0]))
    ),
    "a refusal without a name": (laws.elements_are_defined_or_refused, Refuses(by_name=False)),
    "idle experts at no weight": (laws.idle_experts_are_never_read, WithExperts(everything=True)),
    "forces without history": (laws.parameter_gradients_are_exact, OneParameter("forces without history")),
    "half of the history": (laws.parameter_gradients_are_exact, OneParameter("half of the stress' history")),
    "a detached factor": (laws.parameter_gradients_are_exact, OneParameter("detached factor")),
}  # fmt: skip


def run(law, potential):
    one, all_of_them = ([], [law]) if law in BATCH_LAWS else ([law], [])
    check_potential(potential, CUTOFF, NEAR_CUTOFF, STRUCTURES, one, all_of_them)


@pytest.mark.parametrize(("law", "potential"), BROKEN.values(), ids=BROKEN.keys())
def test_a_law_fails_a_potential_that_breaks_it(law, potential):
    with pytest.raises(AssertionError, match="broken law"):
        run(law, potential)


def test_every_law_is_failed_by_something():
    assert {law for law, _ in BROKEN.values()} == {*POTENTIAL_LAWS, *BATCH_LAWS, far_fragments_add_up}


@pytest.mark.parametrize("potential", HONEST.values(), ids=HONEST.keys())
def test_potentials_that_are_right_pass_every_law(potential):
    check_potential(potential, CUTOFF, NEAR_CUTOFF, STRUCTURES, (*POTENTIAL_LAWS, far_fragments_add_up))


def test_lennard_jones_passes_on_structures_of_every_kind():
    potential = LennardJones(0.2, 1.5, CUTOFF)
    check_potential(potential, CUTOFF, potential.near_cutoff, laws=(*POTENTIAL_LAWS, far_fragments_add_up))


def test_forces_that_end_steeply_do_not_jump_and_are_found_by_their_slope():
    law, potential = BROKEN["forces that end steeply"]
    with pytest.raises(AssertionError, match="slope of forces is bounded"):
        run(law, potential)


def test_what_double_backward_and_the_tangent_route_agree_on_is_still_compared_with_the_loss():
    law, potential = BROKEN["a detached factor"]
    with pytest.raises(AssertionError, match="slope of the loss"):
        run(law, potential)


def test_a_potential_without_forces_is_refused():
    def energies_only(graph, properties):
        return conservative(honest)(graph, ("energy",))

    with pytest.raises(AssertionError, match="gave None"):
        check_potential(energies_only, CUTOFF, NEAR_CUTOFF)


def test_trial_structures_are_of_every_kind():
    structures = list(laws.trial_structures().values())
    assert {int(structure.periodic.sum()) for structure in structures} == {0, 1, 2, 3}
    with_volume = [structure for structure in structures if structure.has_volume]
    assert {bool(np.linalg.det(structure.cell) > 0) for structure in with_volume} == {True, False}
    assert min(len(structure) for structure in structures) == 1
    shortest = [np.linalg.norm(s.cell[s.periodic], axis=1).min() for s in structures if s.periodic.any()]
    assert min(shortest) < NEAR_CUTOFF / 2 + 1
    assert {structure.task for structure in structures} == {0}
