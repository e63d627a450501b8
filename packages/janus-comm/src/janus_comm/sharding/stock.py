"""Sharded parameters under the tangent route: stock FSDP2, or HSDP, and blocks that carry tangents."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from janus_comm.chain import connect
from janus_comm.sharding.bucket import Place, places_by_block
from janus_comm.sharding.initialize import Start
from janus_comm.structures import apart, fill
from janus_comm.tangents import carry_tangents


class StockShards:
    """A model under `fully_shard`, block by block and at its root; differentiated by the tangent route.

    One block's weights are there at a time, in every phase. The model's parameters are DTensors, and everything that
    knows those can be used: optimisers, `torch.distributed.checkpoint`, clipping::

        stock = StockShards(model, model.blocks, device_mesh, checkpoint=True)
        by_tangent(potential, [positions], loss, stock.phase)

    Gradients are summed over ranks, not averaged: what is differentiated is the sum of all ranks' losses.

    Args:
        model: on every rank with the same values, or on the meta device.
        blocks: modules of it, each called with whatever the model calls it with.
        device_mesh: one dimension, to share parameters over; or two, replicas first (HSDP). None: nothing is shared,
            as on one rank.
        checkpoint: keep only what goes into a block, and compute what is inside again when a derivative needs it.
        start: how a model on the meta device gets its values.
        ignored: parameters that are left as they are; somebody else shards them.

    Raises ValueError where blocks share a parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        device_mesh: DeviceMesh | None,
        *,
        checkpoint: bool = False,
        start: Start | None = None,
        ignored: Collection[nn.Parameter] = (),
    ) -> None:
        places = places_by_block(model, blocks, ignored)
        _require_unshared(places[-1], blocks)
        for index, block in enumerate(blocks):
            own = places[index] if start is None else start.of(block, places[index], index)
            _reach_all(block, own)
            if device_mesh is not None:
                others = _others(block, own)
                fully_shard(block, mesh=device_mesh, reshard_after_forward=True, ignored_params=others)
            carry_tangents(block, checkpoint)
        own = places[-1] if start is None else start.of(model, places[-1], len(blocks))
        _reach_all(model, own)
        if device_mesh is not None:
            fully_shard(model, mesh=device_mesh, ignored_params=_others(model, own))
        carry_tangents(model)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo has no other reductions
        self._root = model

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase of a step: gradients are reduced in ``outer`` only."""
        if isinstance(self._root, FSDPModule) and name in ("forward", "tangent"):
            self._root.set_requires_gradient_sync(name == "tangent")
        yield


def _reach_all(module: nn.Module, own: Sequence[Place]) -> None:
    """A backward pass through the module gives each of its own parameters a gradient, be it zero.

    FSDP2 reduces the gradients that there are on a rank, one behind the other: ranks that make different use of a
    module, because one of them has no rows for some part of it, would add up what does not belong together.
    """
    forward = module.forward
    held = [place.holders[0] for place in own if place.parameter.requires_grad]

    def run(*args: Any, **kwargs: Any) -> Any:
        places, tensors = apart(forward(*args, **kwargs))
        first = next((at for at, each in enumerate(tensors) if each.requires_grad), None)
        if first is not None:
            parameters = [holder._parameters[name] for holder, name in held]
            tensors[first] = connect(tensors[first], *(each for each in parameters if each is not None))
        return fill(places, tensors)

    module.forward = run


def _others(module: nn.Module, own: Sequence[Place]) -> set[nn.Parameter]:
    """Parameters of a module that are not among its own: those of its blocks, and those that are ignored."""
    return set(module.parameters()) - {place.parameter for place in own}


def _require_unshared(places: Sequence[Place], blocks: Sequence[nn.Module]) -> None:
    """FSDP2 leaves out what a block shares with others, and nobody would reduce its gradient."""
    inside = {module for block in blocks for module in block.modules()}
    for place in places:
        if any(holder in inside for holder, _ in place.holders):
            raise ValueError(
                f"{' and '.join(place.names)} are one parameter in several blocks, which FSDP2 cannot shard; "
                "take GatherNodes, or put the parameter into one block"
            )
