"""A layer cut down to the experts of some elements is the same layer for them, and can be put back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from janus_moe import group_rows
from janus_moe.pruning import graft_experts, prune_experts
from moe_cases import Case, cases, stirred_layer

CHOSEN = [1, 8, 26]
CASE = Case(4, 12, 2, 3, 4, {1: 2, 8: 1, 26: 3}, 0)


def layer_of(case, seed=0):
    """A layer whose selection is that of its stirred table, unlike that of another seed."""
    layer = stirred_layer(case)
    layer.router.logits.data.copy_(
        torch.randn(layer.router.logits.shape, generator=torch.Generator().manual_seed(seed))
    )
    layer.router.freeze(0)
    return layer


def stir(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        weight.data += 0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)


@given(cases(), st.lists(st.integers(1, 118), max_size=3, unique=True), st.integers(0, 1000))
def test_a_pruned_layer_gives_the_same_values_and_gradients_to_the_bit(case, others, seed):
    layer = layer_of(case, seed)
    elements = {*case.counts, *others} or {1}
    pruned = prune_experts(layer, elements)
    rows = case.rows().requires_grad_()
    found, expected = pruned(rows, case.groups()), layer(rows, case.groups())
    assert torch.equal(found, expected)
    for ours, theirs in zip(*(torch.autograd.grad(x.sin().sum(), rows) for x in (found, expected)), strict=True):
        assert torch.equal(ours, theirs)
    used = set(layer.router.selection[sorted(elements)].flatten().tolist())
    assert len(pruned.experts.down) == len(used)
    assert set(pruned.router.selection[sorted(elements)].flatten().tolist()) == set(range(len(used)))


def test_elements_that_were_cut_off_have_no_value():
    out = prune_experts(layer_of(CASE), [1, 8])(CASE.rows(), CASE.groups())
    assert out[:3].isfinite().all()
    assert out[3:].isnan().all()
    with pytest.raises(ValueError, match=r"some were cut off before"):
        prune_experts(prune_experts(layer_of(CASE), [1, 8]), [8, 26])


def test_layers_of_one_module_keep_as_many_experts_as_the_one_that_needs_most():
    module = nn.ModuleList([layer_of(CASE, 0), layer_of(CASE, 1), layer_of(CASE, 2)])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    pruned = prune_experts(module, CHOSEN)
    needed = [len(layer.router.selection[CHOSEN].unique()) for layer in module]
    assert len(set(needed)) > 1
    for layer, cut in zip(module, pruned, strict=True):
        assert cut.experts.gate_up.shape[0] == cut.router.logits.shape[1] == max(needed)
        assert torch.equal(cut(CASE.rows(), CASE.groups()), layer(CASE.rows(), CASE.groups()))
    stir(pruned, 0)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@given(st.integers(0, 1000))
def test_what_a_pruned_layer_learned_is_what_the_whole_one_says_after_it_is_put_back(seed):
    module = nn.ModuleList([layer_of(CASE, seed), layer_of(CASE, seed + 1)])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    pruned = prune_experts(module, CHOSEN)
    stir(pruned, seed)
    graft_experts(module, pruned, CHOSEN)
    for place, (layer, cut) in enumerate(zip(module, pruned, strict=True)):
        assert torch.equal(layer(CASE.rows(), CASE.groups()), cut(CASE.rows(), CASE.groups()))
        others = [expert for expert in range(12) if expert not in layer.router.selection[CHOSEN]]
        assert torch.equal(layer.experts.down[others], before[f"{place}.experts.down"][others])
        rest = [z for z in range(119) if z not in CHOSEN]
        assert torch.equal(layer.router.logits[rest], before[f"{place}.router.logits"][rest])


def test_what_does_not_fit_together_is_refused():
    layer = layer_of(CASE)
    with pytest.raises(ValueError, match="Linear has no MoELayer to prune"):
        prune_experts(nn.Linear(2, 2), [1])
    for elements in ([], [0], [119]):
        with pytest.raises(ValueError, match="atomic numbers from 1 to 118"):
            prune_experts(layer, elements)
    with pytest.raises(ValueError, match="share experts otherwise"):
        graft_experts(layer, prune_experts(layer_of(CASE, 1), CHOSEN), CHOSEN)
    with pytest.raises(ValueError, match="no MoELayer '0'"):
        graft_experts(layer, nn.ModuleList([prune_experts(layer, CHOSEN)]), CHOSEN)


def test_an_element_that_stands_in_is_routed_as_the_other():
    layer = layer_of(CASE)
    layer.router.stand_in({43: 26, 9: 8})
    rows = CASE.rows()[3:]
    assert torch.equal(layer(rows, group_rows([43], [3])), layer(rows, group_rows([26], [3])))
    assert torch.equal(layer(rows, group_rows([9], [3])), layer(rows, group_rows([8], [3])))
    with pytest.raises(ValueError, match="119 cannot be routed as 1"):
        layer.router.stand_in({119: 1})
