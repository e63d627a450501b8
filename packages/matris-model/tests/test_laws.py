"""Invariance, exact derivatives, extensivity and independence of the batch, for the model as for anybody's."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_graph import Structure, build_graph, conservative_properties, edge_vectors
from janus_graph.testing import sample_structures
from matris_model.basis import envelope
from matris_model.testing import POTENTIAL_LAWS, Candidate, check_potential, same_in_every_batch
from model_cases import EVERYWHERE, TINY, molecule, random_structure, stirred, structures

MODEL = stirred()
CANDIDATE = Candidate(MODEL, TINY.cutoff, TINY.near_cutoff)

SPECIAL = {
    "straight": molecule([8, 6, 8], [[-1.2, 0, 0], [0, 0, 0], [1.3, 0, 0]]),
    "straight chain with a third atom": molecule([8, 6, 8, 1], [[-1.2, 0, 0], [0, 0, 0], [1.3, 0, 0], [0.3, 1.1, 0]]),
    "two neighbours in the same direction": molecule([6, 6, 8], [[0, 0, 0], [1.1, 0, 0], [2.5, 0, 0]]),
    "a bond a hair inside the cutoff": molecule([6, 8, 1], [[0, 0, 0], [TINY.cutoff - 1e-9, 0, 0], [0.9, 0.5, 0]]),
    "a bond a hair outside the near cutoff": molecule(
        [6, 8, 1], [[0, 0, 0], [TINY.near_cutoff + 1e-9, 0, 0], [0.9, 0.5, 0]]
    ),
    "one atom and its images": random_structure(3, 1, (1, 1, 1), EVERYWHERE, left_handed=True, skewed=True),
    "a left-handed skewed crystal": random_structure(4, 3, (2, 2, 1), EVERYWHERE, True, True),
    "a slab": random_structure(5, 3, (2, 1, 1), (True, False, True), True, True),
    "a wire": random_structure(6, 2, (1, 2, 1), (False, True, False)),
}


@pytest.mark.parametrize("law", POTENTIAL_LAWS, ids=lambda law: law.__name__)
@given(structure=structures, seed=st.integers(0, 100))
def test_the_model_obeys(law, structure, seed):
    law(CANDIDATE, structure, np.random.default_rng(seed))


@pytest.mark.parametrize("structure", SPECIAL.values(), ids=SPECIAL.keys())
@pytest.mark.parametrize("law", POTENTIAL_LAWS, ids=lambda law: law.__name__)
def test_the_model_obeys_where_it_is_hard(law, structure):
    law(CANDIDATE, structure, np.random.default_rng(0))


@given(structures=st.lists(structures, min_size=1, max_size=4), seed=st.integers(0, 100))
def test_batches_and_their_order_change_nothing(structures, seed):
    same_in_every_batch(CANDIDATE, structures, np.random.default_rng(seed))


def test_the_suite_passes_for_the_model_on_the_sample_structures():
    check_potential(MODEL, TINY.cutoff, TINY.near_cutoff)
    check_potential(MODEL, TINY.cutoff, TINY.near_cutoff, sample_structures().values())


@given(structures, structures)
def test_far_fragments_add_up_without_the_composition(first, second):
    first, second = (
        dataclasses.replace(s, periodic=np.zeros(3, bool), cell=np.zeros((3, 3)), task=0, charge=0, spin=1)
        for s in (first, second)
    )
    candidate = Candidate(stirred(TINY.replace(composition=False)), TINY.cutoff, TINY.near_cutoff)
    one, other, both = candidate([first, second, together(first, second)])
    assert both.energy == pytest.approx(one.energy + other.energy, abs=1e-10)
    np.testing.assert_allclose(both.forces, np.concatenate([one.forces, other.forces]), rtol=0, atol=1e-10)


def test_far_fragments_know_of_each_other_by_the_composition():
    first, second = molecule([8, 1], [[0, 0, 0], [0, 0, 1]]), molecule([26, 26], [[0, 0, 0], [0, 0, 2]])
    one, other, both = CANDIDATE([first, second, together(first, second)])
    assert abs(both.energy - one.energy - other.energy) > 1e-6


def together(first: Structure, second: Structure) -> Structure:
    numbers = np.concatenate([first.atomic_numbers, second.atomic_numbers])
    return molecule(numbers, np.concatenate([first.positions, second.positions + np.array([90.0, 0, 0])]))


# Potentials that each break one law, to see that the suite finds it.


def pair_energy(graph, weight):
    vectors = edge_vectors(graph)
    distances = vectors.norm(dim=1)
    owner = graph.structure_index.index_select(0, graph.edge_index[0])
    terms = weight(vectors, distances, graph) * envelope(distances, graph.cutoff)
    return terms.new_zeros(graph.structures).index_add(0, owner, terms)


def per_atom(graph, terms):
    return terms.new_zeros(graph.structures).index_add(0, graph.structure_index, terms)


def chirality(graph):
    """Signed volumes of triples of edges of an atom: they change sign in a mirror."""
    vectors = edge_vectors(graph)
    terms = torch.zeros(graph.atoms, dtype=torch.float64)
    element = graph.atomic_numbers.index_select(0, graph.edge_index[1])
    weighted = vectors * (envelope(vectors.norm(dim=1), graph.cutoff) * element)[:, None]
    for atom in range(graph.atoms):
        own = weighted[graph.edge_index[0] == atom]
        lengths = own.norm(dim=1)[:, None]
        a, b, c = own.sum(0), (own * lengths).sum(0), (own * lengths**2).sum(0)
        terms[atom] = torch.dot(a, torch.linalg.cross(b, c))
    return per_atom(graph, terms)


def honest(graph):
    return pair_energy(graph, lambda v, r, g: torch.exp(-r) / g.atomic_numbers[g.edge_index[1]])


def conservative(energy):
    return lambda graph, properties: conservative_properties(lambda g: (energy(g), None), graph, properties)


def with_changed(name, factor):
    def potential(graph, properties):
        found = conservative(honest)(graph, properties)
        return dataclasses.replace(found, **{name: getattr(found, name) * factor}) if name in properties else found

    return potential


BROKEN = {
    "translation": conservative(lambda g: honest(g) + per_atom(g, g.positions[:, 0].sin())),
    "rotation": conservative(lambda g: pair_energy(g, lambda v, r, _: v[:, 2] ** 2)),
    "reflection": conservative(lambda g: honest(g) + chirality(g)),
    "permutation": conservative(
        lambda g: pair_energy(g, lambda v, r, _: 1.0 + (g.input_index[g.edge_index[0]] == 0).double())
    ),
    "wrapping": conservative(lambda g: pair_energy(g, lambda v, r, _: 1 + g.edge_shifts.abs().sum(dim=1))),
    "choice of lattice vectors": conservative(lambda g: honest(g) + g.cells.square().sum(dim=(1, 2))),
    "supercell": conservative(lambda g: honest(g).square()),
    "forces": with_changed("forces", 1.001),
    "stress": with_changed("stress", -1),
    "what else is in the batch": conservative(lambda g: honest(g) * (1 + 0.1 * len(g.elements))),
}


# One crystal without any symmetry is enough for most laws.
FOR_BROKEN = [random_structure(7, 3, (2, 2, 1), EVERYWHERE, skewed=True), molecule([3, 9], [[0, 0, 0], [0, 0, 1]])]


def test_the_suite_passes_for_an_honest_pair_potential():
    check_potential(conservative(honest), 4.0, 3.0)


@pytest.mark.parametrize(("law", "potential"), BROKEN.items(), ids=BROKEN.keys())
def test_the_suite_finds_what_is_broken(law, potential):
    with pytest.raises(AssertionError, match=law):
        check_potential(potential, 4.0, 3.0, FOR_BROKEN)


def test_the_suite_refuses_a_potential_without_forces():
    def energies_only(graph, properties):
        return conservative(honest)(graph, ("energy",))

    with pytest.raises(AssertionError, match="gave None"):
        check_potential(energies_only, 4.0, 3.0)


def test_the_model_refuses_a_graph_with_other_cutoffs():
    graph = build_graph([SPECIAL["straight"]], 4.0, 2.5)
    with pytest.raises(ValueError, match=r"4\.0 and 2\.5 Å, the model needs 4\.0 and 3\.0 Å"):
        MODEL(graph)
