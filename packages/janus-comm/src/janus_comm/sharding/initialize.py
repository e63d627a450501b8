"""Parameters made block by block: of a model on the meta device no rank ever holds more than one block whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from janus_comm.sharding.bucket import Place

Initialize: TypeAlias = Callable[[nn.Module], None]
"""Fills the parameters and buffers of a block; and of the model without its blocks, which hold shards by then."""


@dataclass(frozen=True)
class Start:
    """How a model that was made on the meta device gets its values, block by block and the same on all ranks.

    Attributes:
        initialize: fills the parameters and buffers of what it is given.
        device: where they are made.
        seed: of torch's random numbers; each block has one of its own that follows from it.
    """

    initialize: Initialize
    device: torch.device
    seed: int = 0

    def of(self, module: nn.Module, places: Sequence[Place], index: int) -> list[Place]:
        """The parameters of a block with values, if they have none."""
        if not any(place.parameter.is_meta for place in places):
            return list(places)
        return materialize(module, places, self.device, self.initialize, self.seed + index)


def materialize(
    module: nn.Module, places: Sequence[Place], device: torch.device, initialize: Initialize, seed: int
) -> list[Place]:
    """Parameters with values in place of those without memory; the same ones on every rank for a seed.

    Args:
        module: the block, or the model.
        places: the parameters that are its own.
        device: where to make them.
        initialize: fills them.
        seed: of torch's random numbers while it does; they are afterwards what they were before.
    """
    made = []
    for place in places:
        parameter = nn.Parameter(
            torch.empty(place.parameter.shape, dtype=place.parameter.dtype, device=device),
            requires_grad=place.parameter.requires_grad,
        )
        for holder, name in place.holders:
            holder._parameters[name] = parameter
        made.append(Place(parameter, place.holders, place.names))
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_meta:
                part._buffers[name] = torch.empty_like(buffer, device=device)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        torch.manual_seed(seed)
        initialize(module)
    return made
