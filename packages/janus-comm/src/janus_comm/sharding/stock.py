"""Sharded parameters under the tangent route: stock FSDP2, or HSDP, and blocks that carry tangents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    ) -> None:
        places = places_by_block(model, blocks)
        _require_unshared(places[-1], blocks)
        for index, block in enumerate(blocks):
            if start is not None:
                start.of(block, places[index], index)
            if device_mesh is not None:
                fully_shard(block, mesh=device_mesh, reshard_after_forward=True)
            carry_tangents(block, checkpoint)
        if start is not None:
            start.of(model, places[-1], len(blocks))
        if device_mesh is not None:
            fully_shard(model, mesh=device_mesh)
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


def _require_unshared(places: Sequence[Place], blocks: Sequence[nn.Module]) -> None:
    """FSDP2 leaves out what a block shares with others, and nobody would reduce its gradient."""
    inside = {module for block in blocks for module in block.modules()}
    for place in places:
        if any(holder in inside for holder, _ in place.holders):
            raise ValueError(
                f"{' and '.join(place.names)} are one parameter in several blocks, which FSDP2 cannot shard; "
                "take GatherNodes, or put the parameter into one block"
            )
