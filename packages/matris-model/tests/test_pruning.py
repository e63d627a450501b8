"""Law 7: a model cut down to some elements says the same of them; and what it learned can be put back."""

import pytest
import torch

from janus_graph import build_graph
from matris_model import MatRISMoE, graft_model, load_model, prune_model, save_model, stand_in
from model_cases import EVERYWHERE, TINY, random_structure, stirred

PROPERTIES = ("energy", "forces", "stress", "magmoms")
CONFIG = TINY.replace(experts=12, elements=(1, 6, 8, 26))


def graph_of(elements, seed=3):
    structures = [random_structure(seed, 4, (2, 2, 2), EVERYWHERE, elements=elements),
                  random_structure(seed + 1, 3, (2, 2, 1), (False,) * 3, elements=elements)]  # fmt: skip
    return build_graph(structures, CONFIG.cutoff, CONFIG.near_cutoff)


def uneven():
    """A model whose layers select otherwise than each other."""
    model = stirred(CONFIG)
    for place, block in enumerate(model.blocks):
        for layer in (block.message_experts, block.feature_experts):
            generator = torch.Generator().manual_seed(place)
            layer.router.explore(3 * torch.randn(layer.router.logits.shape, generator=generator))
    return model


def assert_same(first, second, graph):
    ours, theirs = first(graph, PROPERTIES), second(graph, PROPERTIES)
    assert all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in PROPERTIES)


def test_a_pruned_model_is_smaller_and_says_the_same_to_the_bit(tmp_path):
    model = uneven()
    pruned = prune_model(model, [8, 1])
    assert pruned.config.elements == (1, 8)
    assert CONFIG.top_k <= pruned.config.experts <= 2 * CONFIG.top_k
    assert model.config == CONFIG
    assert_same(pruned, model, graph_of((1, 8)))
    with pytest.raises(ValueError, match="has not seen Fe"):
        pruned.check_elements([26])
    loaded = load_model(save_model(pruned, tmp_path))
    assert loaded.config == pruned.config
    assert_same(loaded, model, graph_of((1, 8)))


def test_a_pruned_model_learns_and_the_whole_one_takes_it_over():
    model = uneven()
    pruned = prune_model(model, [8, 1])
    optimizer = torch.optim.AdamW(pruned.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        pruned(graph_of((1, 8)), ("energy", "forces")).forces.square().sum().backward()
        optimizer.step()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graft_model(model, pruned)
    assert_same(model, pruned, graph_of((1, 8)))
    for name in ("atom_embedding.element", "atom_embedding.structure.composition"):
        assert torch.equal(model.state_dict()[name][26], before[name][26])
        assert not torch.equal(model.state_dict()[name][8], before[name][8])
    assert model.config == CONFIG


def test_models_that_do_not_belong_together_are_refused():
    model = stirred(CONFIG)
    with pytest.raises(ValueError, match="has not seen Au"):
        prune_model(model, [79])
    with pytest.raises(ValueError, match="differ in more than experts and elements"):
        graft_model(MatRISMoE(CONFIG.replace(blocks=1)).double(), prune_model(model, [8]))


def test_an_element_that_stands_in_has_the_energy_of_the_other():
    model = uneven()
    extended = stand_in(model, {43: 26})
    assert extended.config.elements == (1, 6, 8, 26, 43)
    one, other = (extended(graph_of((8, z)), PROPERTIES) for z in (43, 26))
    # Graphs sort atoms by element, and both stand behind oxygen.
    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in PROPERTIES)
    assert_same(extended, model, graph_of((1, 8, 26)))
    with pytest.raises(ValueError, match="has not seen Mn"):
        stand_in(model, {43: 25})
    with pytest.raises(ValueError, match="was trained for C; leave them out"):
        stand_in(model, {6: 26})
    with pytest.raises(ValueError, match="has not seen Tc"):
        model.check_elements([43])
