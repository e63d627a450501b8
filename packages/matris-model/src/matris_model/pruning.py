"""Models cut down to some elements and put back together, and elements that stand in for others."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from janus_moe import MoELayer
from janus_moe.pruning import graft_experts, prune_experts
from matris_model.elements import CHEMICAL_SYMBOLS, refuse_unseen_elements
from matris_model.model import MatRISMoE

BY_ELEMENT = {
    "atom_embedding.element": 0,
    "atom_embedding.structure.composition": 0,
    "density.neighbour": 0,
    "density.centre": 0,
    "density.spread": 0,
    "references": 1,
}
"""Tensors with something for each element, and the dimension that counts elements."""


def prune_model(model: MatRISMoE, elements: Collection[int]) -> MatRISMoE:
    """A smaller model for these elements alone that says the same of them, to the bit.

    It holds the experts that they use; where one layer needs fewer than another it holds some more, so that
    `config.experts` is one number. All other elements are refused. The given model stays as it is.

    Raises:
        ValueError: no element, or one that the model was not trained for.
    """
    refuse_unseen_elements(elements, model.config.elements)
    pruned = prune_experts(model, elements)
    (experts,) = {layer.router.logits.shape[1] for layer in pruned.modules() if isinstance(layer, MoELayer)}
    pruned.config = model.config.replace(experts=experts, elements=tuple(set(elements)))
    return pruned


@torch.no_grad()
def graft_model(whole: MatRISMoE, pruned: MatRISMoE) -> None:
    """Writes the weights of a pruned model, trained further, into the whole one, which then says the same of its
    elements.

    Rows of other elements and experts that only they use stay. All that elements have in common is overwritten, so
    what the whole model says of other elements changes, and is to be checked.

    Raises:
        ValueError: models of which one was not cut from the other; nothing is changed then.
    """
    elements = pruned.config.elements
    if pruned.config.replace(experts=whole.config.experts, elements=whole.config.elements) != whole.config:
        raise ValueError("the two models differ in more than experts and elements; give the model that was pruned")
    graft_experts(whole, pruned, elements)
    grafted = tuple(f"{name}." for name, part in whole.named_modules() if isinstance(part, MoELayer))
    into = whole.state_dict()
    for name, value in pruned.state_dict().items():
        if name in BY_ELEMENT:
            copy_elements(into[name], value, BY_ELEMENT[name], elements, elements)
        elif not name.startswith(grafted):
            into[name].copy_(value)


@torch.no_grad()
def stand_in(model: MatRISMoE, elements: Mapping[int, int]) -> MatRISMoE:
    """A model that takes elements it has not seen for others: with `{43: 25}` technetium has the energy of manganese.

    Experts, gates, embedding and reference energies of the second become those of the first, so energies and forces are
    those of the structure with the second in its place. A start for training on the new element, or a stopgap: what is
    known of its own energy belongs into `references`. The given model stays as it is.

    Raises:
        ValueError: an element to stand in that the model was not trained for, or one to be replaced that it knows.
    """
    refuse_unseen_elements(elements.values(), model.config.elements)
    if known := sorted(set(elements) & set(model.config.elements)):
        raise ValueError(f"this model was trained for {', '.join(CHEMICAL_SYMBOLS[z] for z in known)}; leave them out")
    extended = copy.deepcopy(model)
    for layer in extended.modules():
        if isinstance(layer, MoELayer):
            layer.router.stand_in(elements)
    for name, tensor in extended.state_dict().items():
        if name in BY_ELEMENT:
            copy_elements(tensor, tensor, BY_ELEMENT[name], list(elements), list(elements.values()))
    if model.config.elements:
        extended.config = model.config.replace(elements=(*model.config.elements, *elements))
    return extended


def copy_elements(into: Tensor, source: Tensor, dimension: int, to: Sequence[int], of: Sequence[int]) -> None:
    """Writes what one tensor has for the elements `of` into the places of the elements `to` of another, or itself."""
    values = source.index_select(dimension, torch.tensor(of, dtype=torch.int64, device=source.device))
    into.index_copy_(dimension, torch.tensor(to, dtype=torch.int64, device=into.device), values.to(into))
