"""Invariance, exact derivatives, extensivity and independence of the batch, for the model as for anybody's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_graph import build_graph
from matris_model import preset_config
from matris_model.testing import (
    POTENTIAL_LAWS,
    Candidate,
    check_potential,
    far_fragments_add_up,
    idle_experts_are_never_read,
    parameter_gradients_are_exact,
    same_in_every_batch,
    trial_structures,
)
from model_cases import TINY, molecule, stirred, structures

MODEL = stirred()
CANDIDATE = Candidate(MODEL, TINY.cutoff, TINY.near_cutoff)
WITHOUT_COMPOSITION = Candidate(stirred(TINY.replace(composition=False)), TINY.cutoff, TINY.near_cutoff)

SPECIAL = {
    "straight chain with a third atom": molecule([8, 6, 8, 1], [[-1.2, 0, 0], [0, 0, 0], [1.3, 0, 0], [0.3, 1.1, 0]]),
    "two neighbours in the same direction": molecule([6, 6, 8], [[0, 0, 0], [1.1, 0, 0], [2.5, 0, 0]]),
    "a bond a hair inside the cutoff": molecule([6, 8, 1], [[0, 0, 0], [TINY.cutoff - 1e-9, 0, 0], [0.9, 0.5, 0]]),
    "a bond a hair outside the near cutoff": molecule(
        [6, 8, 1], [[0, 0, 0], [TINY.near_cutoff + 1e-9, 0, 0], [0.9, 0.5, 0]]
    ),
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


@pytest.mark.parametrize(
    "law", [parameter_gradients_are_exact, idle_experts_are_never_read], ids=lambda law: law.__name__
)
@settings(max_examples=max(1, settings().max_examples // 3))
@given(structures=st.lists(structures, min_size=1, max_size=4), seed=st.integers(0, 100))
def test_the_parameters_of_the_model_obey(law, structures, seed):
    law(CANDIDATE, structures, np.random.default_rng(seed))


def test_the_model_passes_on_structures_of_every_kind():
    check_potential(MODEL, TINY.cutoff, TINY.near_cutoff)


PRESETS = {
    "nano": preset_config("nano"),
    "micro": preset_config("micro", composition=False),
    "one of everything": TINY.replace(
        blocks=1, heads=1, experts=1, top_k=1, radial_functions=1, angular_functions=1, tasks=("only",)
    ),
    "equal cutoffs, all experts, no more heads": TINY.replace(
        near_cutoff=TINY.cutoff, top_k=TINY.experts, magnetic_moments=False, composition=False
    ),
}


@pytest.mark.parametrize("name", PRESETS)
def test_models_of_other_sizes_pass(name):
    config = PRESETS[name]
    chosen = ["molecule"] if name == "micro" else ["atoms out of reach", "slab in a vacuum", "skewed cell"]
    laws = POTENTIAL_LAWS if config.composition else (*POTENTIAL_LAWS, far_fragments_add_up)
    structures = [trial_structures()[kind] for kind in chosen]
    check_potential(stirred(config, seed=1), config.cutoff, config.near_cutoff, structures, laws)


@given(structure=structures, seed=st.integers(0, 100))
def test_far_fragments_add_up_without_the_composition(structure, seed):
    far_fragments_add_up(WITHOUT_COMPOSITION, structure, np.random.default_rng(seed))


def test_far_fragments_know_of_each_other_by_the_composition():
    with pytest.raises(AssertionError, match="far fragments: energy"):
        far_fragments_add_up(CANDIDATE, SPECIAL["straight chain with a third atom"], np.random.default_rng(0))


def test_the_model_refuses_a_graph_with_other_cutoffs():
    graph = build_graph([SPECIAL["straight chain with a third atom"]], 4.0, 2.5)
    with pytest.raises(ValueError, match=r"4\.0 and 2\.5 Å, the model needs 4\.0 and 3\.0 Å"):
        MODEL(graph)
