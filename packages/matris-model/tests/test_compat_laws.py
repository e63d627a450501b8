"""Which laws of a potential the published architecture obeys, and which it breaks, and how.

What is broken is broken on purpose: official weights were trained that way. docs/matris.md says it in words.
"""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compat_cases import FLAVOURS, TINY_FOURIER, TINY_SH, stirred_compat
from janus_graph import Structure, build_graph
from janus_graph.testing import sample_structures
from matris_model.testing import POTENTIAL_LAWS, Candidate, same_in_every_batch
from model_cases import EVERYWHERE, molecule, random_structure, structures

MODELS = {name: stirred_compat(config) for name, config in FLAVOURS.items()}
CUTOFFS = (TINY_SH.cutoff, TINY_SH.near_cutoff)
CANDIDATES = {name: Candidate(model, *CUTOFFS) for name, model in MODELS.items()}

# Laws about one structure of which official weights know nothing. They are shown to be broken below.
BROKEN = {
    "nothing_jumps_at_the_cutoff",
    "nothing_jumps_at_the_near_cutoff",
    "derivatives_are_exact_at_the_cutoffs",
    "bending_is_harmonic",
}
OBEYED = [law for law in POTENTIAL_LAWS if law.__name__ not in BROKEN]

# Every kind, but none that takes long.
SAMPLES = [
    sample_structures()[name]
    for name in ("one atom", "atoms out of reach", "molecule", "left-handed cell", "slab in a vacuum", "wire")
]

ANGLED = random_structure(7, 3, (2, 2, 1), EVERYWHERE, skewed=True)
WITHOUT_ANGLES = molecule([8, 26], [[0, 0, 0], [0, 1.1, 3.2]])
flavours = pytest.mark.parametrize("candidate", CANDIDATES.values(), ids=CANDIDATES.keys())


@pytest.mark.parametrize("law", OBEYED, ids=lambda law: law.__name__)
@settings(max_examples=5)
@given(structure=structures, seed=st.integers(0, 100), flavour=st.sampled_from(sorted(CANDIDATES)))
def test_it_obeys(law, structure, seed, flavour):
    law(CANDIDATES[flavour], structure, np.random.default_rng(seed))


@pytest.mark.parametrize("law", OBEYED, ids=lambda law: law.__name__)
@flavours
def test_it_obeys_on_every_kind_of_structure(candidate, law):
    for structure in SAMPLES:
        law(candidate, structure, np.random.default_rng(0))


@flavours
def test_it_obeys_the_laws_of_batches_among_structures_that_all_have_angles(candidate):
    batch = [random_structure(seed, 3, (2, 2, 1), EVERYWHERE) for seed in range(3)]
    same_in_every_batch(candidate, batch, np.random.default_rng(0))


@given(structures)
@settings(max_examples=4)
def test_energies_and_forces_are_the_same_computed_again_or_kept(structure):
    kept, again = stirred_compat(), stirred_compat()
    again.recompute_above = 0
    graph = build_graph([structure], *CUTOFFS)
    for model in (kept, again):
        found = model(graph, ("energy", "forces", "stress"))
        (found.energy.sum() + found.forces.square().sum() + found.stress.square().sum()).backward()
    for name, parameter in kept.named_parameters():
        other = again.get_parameter(name).grad
        assert (parameter.grad is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(other, parameter.grad, rtol=1e-10, atol=1e-10)


def by_finite_differences(energy, positions, along, parameters):
    """Slope of dE/dθ along a tangent: fourth order in the step, and a single backward pass each."""
    step, slopes = 1e-3, [torch.zeros_like(parameter) for parameter in parameters]
    for offset, weight in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)):
        for slope, gradient in zip(
            slopes, gradients(energy(positions + offset * step * along), parameters), strict=True
        ):
            slope += weight / step * gradient
    return slopes, 1e-6


def by_a_forward_derivative(energy, positions, along, parameters):
    """dE along a tangent is carried forward beside the energy and then taken back once."""
    return gradients(torch.func.jvp(energy, (positions,), (along,))[1], parameters), 1e-11


def gradients(value, parameters):
    return torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("route", [by_finite_differences, by_a_forward_derivative], ids=lambda route: route.__name__)
@flavours
def test_gradients_of_forces_by_double_backward_are_those_of_energies_along_a_tangent(candidate, route):
    """d(F · w)/dθ is minus the slope of dE/dθ along w. Neither route differentiates twice backwards."""
    model = candidate.potential
    along = torch.from_numpy(np.random.default_rng(0).normal(size=(len(ANGLED), 3)))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    graph = build_graph([ANGLED], *CUTOFFS)

    def energy(positions):
        return model(graph.replace(positions=positions), ("energy",)).energy.sum()

    found = gradients((model(graph, ("forces",)).forces * along).sum(), parameters)
    slopes, tolerance = route(energy, graph.positions, along, parameters)
    for gradient, slope in zip(found, slopes, strict=True):
        allowed = tolerance * (1 + float(gradient.abs().max()))
        torch.testing.assert_close(gradient, -slope, rtol=tolerance, atol=allowed)


@pytest.mark.parametrize("left_handed", [False, True])
@flavours
def test_stress_is_the_derivative_over_the_volume_whatever_the_hand_of_the_cell(candidate, left_handed):
    """The published code divides by a signed volume: for left-handed cells its stress has the other sign."""
    right = random_structure(7, 3, (2, 2, 1), EVERYWHERE, skewed=True)
    sign = np.array([-1, 1, 1]) if left_handed else np.ones(3)
    cell = sign[:, None] * right.cell
    structure = dataclasses.replace(right, cell=cell)
    np.testing.assert_allclose(candidate.alone(structure).stress, candidate.alone(right).stress, rtol=0, atol=1e-10)


def test_what_the_published_code_refuses_is_defined_here():
    """One atom, no neighbour, no periodicity: the published code wants crystals whose atoms all have neighbours."""
    for candidate in CANDIDATES.values():
        for structure in (molecule([1], [[0, 0, 0]]), molecule([2, 10], [[0, 0, 0], [90, 0, 0]])):
            found = candidate.alone(structure)
            assert np.isfinite(found.energy)
            assert not found.forces.any()


# What is broken.


@flavours
def test_a_structure_without_angles_depends_on_what_else_is_in_the_batch(candidate):
    """Alone it skips the layers of angles, and with them atom attention's update of bonds; in company it does not."""
    with pytest.raises(AssertionError, match="what else is in the batch"):
        same_in_every_batch(candidate, [ANGLED, WITHOUT_ANGLES], np.random.default_rng(0))
    alone, together = candidate.alone(WITHOUT_ANGLES), candidate([WITHOUT_ANGLES, ANGLED])[0]
    assert abs(alone.energy - together.energy) > 1e-4
    other = candidate([WITHOUT_ANGLES, random_structure(3, 2, (1, 2, 1), EVERYWHERE)])[0]
    assert together.energy == pytest.approx(other.energy, abs=1e-10)


@flavours
def test_far_fragments_add_up_unless_one_of_them_has_no_angles(candidate):
    def energies(first: Structure, second: Structure) -> tuple[float, float]:
        positions = np.concatenate([first.positions, second.positions + np.array([90.0, 0, 0])])
        numbers = np.concatenate([first.atomic_numbers, second.atomic_numbers])
        both = candidate.alone(molecule(numbers, positions)).energy
        return both, candidate.alone(first).energy + candidate.alone(second).energy

    water = molecule([8, 1, 1], [[0, 0, 0.12], [0, 0.76, -0.47], [0, -0.76, -0.47]])
    carbon = molecule([6, 8, 8], [[0, 0, 0], [0, 0.2, 1.2], [0, 0.1, -1.2]])
    both, apart = energies(water, carbon)
    assert both == pytest.approx(apart, abs=6 * float(np.finfo(np.float32).eps) * (1 + abs(apart)))
    both, apart = energies(water, WITHOUT_ANGLES)
    assert abs(both - apart) > 1e-4


def jump(candidate, cutoff):
    """How far energy and forces are from each other a hair before and behind a cutoff, in eV and eV/Å."""
    direction = np.array([0.6, -0.48, 0.64])

    def at(x):
        return molecule([8, 26, 6], [np.zeros(3), (cutoff + x) * direction, [0.3, 1.2, 0.1]])

    inside, outside = candidate.alone(at(-1e-7)), candidate.alone(at(1e-7))
    return abs(inside.energy - outside.energy), np.abs(inside.forces - outside.forces).max()


@pytest.mark.parametrize("cutoff", CUTOFFS, ids=["cutoff", "three-body cutoff"])
@flavours
def test_energy_and_forces_jump_where_a_neighbour_crosses_a_cutoff(candidate, cutoff):
    """Attention weights and messages know no envelope. A smooth potential would stay below 1e-8 eV and 1e-6 eV/Å."""
    energy, forces = jump(candidate, cutoff)
    assert energy > 1e-5
    assert forces > 1e-5


def test_bending_a_straight_molecule_gets_stiffer_the_less_it_is_bent():
    """θ = acos((1 − 1e-6) cos) is rounded off within a milliradian of 180°, and kinked where it is not."""

    def bending(candidate, height):
        def energy(h):
            return candidate.alone(molecule([8, 6, 8], [[-1.2, h, 0], [0, -h, 0], [1.2, h, 0]])).energy

        return (energy(height) - energy(0.0)) / height**2

    small, large = (bending(CANDIDATES["Fourier, layer norm"], height) for height in (1e-4, 1e-2))
    assert abs(small / large - 1) > 0.5
    # Polynomials of the cosine have no such trouble.
    small, large = (bending(CANDIDATES["SH, rms norm"], height) for height in (1e-4, 1e-2))
    assert small == pytest.approx(large, rel=0.01)


def test_single_precision_is_another_function_with_rms_norms():
    """Their epsilon is that of the precision, and divides what is small."""
    norm = stirred_compat(TINY_SH).readout_norm
    tiny = torch.full((1, TINY_SH.node_feat_dim), 1e-5, dtype=torch.float64)
    double, single = norm(tiny), norm.float()(tiny.float())
    assert ((double - single).abs() / double.abs()).max() > 0.1


def test_reference_energies_are_rounded_to_single_precision():
    model = stirred_compat(TINY_FOURIER)
    with torch.no_grad():
        model.reference_energy.fc.weight.fill_(1.0).div_(3.0)
    graph = build_graph([ANGLED], *CUTOFFS)
    per_atom = float(model.reference_energy(graph.composition))
    assert per_atom == float(np.float32(per_atom))
    assert 0 < abs(per_atom - 1 / 3) < 4 * np.finfo(np.float32).eps
