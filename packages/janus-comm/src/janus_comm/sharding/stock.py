"""Sharded parameters under the tangent route: stock FSDP2, or HSDP, and blocks that carry tangents."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from janus_comm.sharding.bucket import Place, places_by_block
from janus_comm.sharding.initialize import Start
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
            if device_mesh is not None:
                others = _others(block, own)
                fully_shard(block, mesh=device_mesh, reshard_after_forward=True, ignored_params=others)
            carry_tangents(block, checkpoint)
        own = places[-1] if start is None else start.of(model, places[-1], len(blocks))
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
