"""Layers cut down to the experts that some elements use, and what was learned with them written back."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from janus_moe.layer import MoELayer
from janus_moe.selection import ELEMENTS

Module = TypeVar("Module", bound=nn.Module)


def prune_experts(module: Module, elements: Collection[int]) -> Module:
    """A copy of a module, a MoE layer or one that holds any, that computes the same for these elements to the bit.

    Its layers hold the experts that the elements use, as many in each layer as in the one that needs most: others are
    filled up with the first of those that are not needed. The experts that are left out are not copied. For all other
    elements it has no answer: their rows come out as NaN.

    Args:
        module: the whole one; it stays as it is.
        elements: atomic numbers.

    Raises:
        ValueError: no layer, no element, or elements that were cut off before.
    """
    layers = [part for part in module.modules() if isinstance(part, MoELayer)]
    if not layers:
        raise ValueError(f"{type(module).__name__} has no MoELayer to prune; give one, or a module that holds some")
    rows = _element_rows(elements)
    used = [layer.router.selection[rows.to(layer.router.selection.device)].unique() for layer in layers]
    count = max(len(own) for own in used)
    instead: dict[int, object] = {}
    for layer, own in zip(layers, used, strict=True):
        instead |= _instead(layer, rows.to(own.device), _filled_up(own, count, layer.router.logits.shape[1]))
    # Where a copy meets one of these tensors it takes what stands in its place; everything else is copied.
    return copy.deepcopy(module, instead)


@torch.no_grad()
def graft_experts(whole: nn.Module, pruned: nn.Module, elements: Collection[int]) -> None:
    """Writes what the MoE layers of a pruned module learned into the whole one, which then computes the same for them.

    Shared experts, the experts of these elements and their gates are overwritten. Other elements keep their gates and
    the experts that only they use; what they share with these elements changes with it.

    Args:
        whole: the module that was pruned, or one like it; changed in place.
        pruned: what `prune_experts(whole, elements)` gave, trained further.
        elements: the elements that it was cut down to.

    Raises:
        ValueError: modules of which one was not cut from the other; neither is changed then.
    """
    rows = _element_rows(elements)
    pairs = []
    for name, cut in pruned.named_modules():
        if isinstance(cut, MoELayer):
            layer = whole.get_submodule(name) if name in dict(whole.named_modules()) else None
            if not isinstance(layer, MoELayer):
                raise ValueError(f"the whole module has no MoELayer '{name}'; give the one that was pruned")
            pairs.append((layer, cut, *_same_places(name, layer, cut, rows)))
    for layer, cut, places, origins in pairs:
        layer.shared.load_state_dict(cut.shared.state_dict())
        for weight, smaller in zip(layer.experts.parameters(), cut.experts.parameters(), strict=True):
            weight[origins.flatten()] = smaller[places.flatten()].to(weight)
        learned = cut.router.logits[rows.to(places.device)].gather(1, places)
        layer.router.logits[rows.to(origins.device)[:, None], origins] = learned.to(layer.router.logits)


def _element_rows(elements: Collection[int]) -> Int64[Tensor, "chosen"]:
    chosen = sorted(set(elements))
    if not chosen or not 1 <= chosen[0] <= chosen[-1] < ELEMENTS:
        raise ValueError(f"elements are {chosen}; give atomic numbers from 1 to {ELEMENTS - 1}, at least one")
    return torch.tensor(chosen, dtype=torch.int64)


def _filled_up(own: Tensor, count: int, experts: int) -> Int64[Tensor, "kept"]:
    """These experts and further ones up to a count, ascending: an element's experts keep their order."""
    idle = torch.ones(experts, dtype=torch.bool, device=own.device).index_fill(0, own, False).nonzero().flatten()
    return torch.cat([own, idle[: count - len(own)]]).sort().values


@torch.no_grad()
def _instead(layer: MoELayer, rows: Tensor, kept: Tensor) -> dict[int, object]:
    """By the identity of each tensor of the layer that shrinks, the smaller one."""
    router = layer.router
    logits, selection = router.logits[rows], router.selection[rows]
    if not bool(logits.gather(1, selection).isfinite().all()):
        raise ValueError(f"not all of the elements {rows.tolist()} have experts here; some were cut off before")
    places = torch.zeros(router.logits.shape[1], dtype=torch.int64, device=kept.device)
    places[kept] = torch.arange(len(kept), device=kept.device)
    # An element without experts has to select some. No number can come of gates that are none.
    new_logits = torch.full_like(router.logits[:, kept], torch.nan)
    new_logits[rows] = logits[:, kept]
    new_selection = torch.arange(selection.shape[1], device=kept.device).repeat(ELEMENTS, 1)
    new_selection[rows] = places[selection]
    smaller = {name: weight[kept] for name, weight in layer.experts.named_parameters()}
    instead: dict[int, object] = {
        id(weight): nn.Parameter(smaller[name], requires_grad=weight.requires_grad)
        for name, weight in layer.experts.named_parameters()
    }
    instead[id(router.logits)] = nn.Parameter(new_logits, requires_grad=router.logits.requires_grad)
    instead[id(router.selection)] = new_selection
    return instead


def _same_places(name: str, layer: MoELayer, cut: MoELayer, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the elements' experts in the pruned and in the whole layer, [elements, top_k] each."""
    places = cut.router.selection[rows.to(cut.router.selection.device)]
    origins = layer.router.selection[rows.to(layer.router.selection.device)]
    if places.shape == origins.shape:
        pairs = set(zip(places.flatten().tolist(), origins.flatten().tolist(), strict=True))
        if len(pairs) == len({place for place, _ in pairs}) == len({origin for _, origin in pairs}):
            return places, origins
    raise ValueError(
        f"in layer '{name}' the elements {rows.tolist()} share experts otherwise than in the whole module; give the "
        "one that was pruned, with the selection that it had then, and the elements it was pruned to"
    )
