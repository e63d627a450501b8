"""Which way a unit of ranks spends memory: the fastest that fits the largest step, from sizes alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from janus_comm import Communicator, Mesh
from janus_moe.planner import plan_experts
from janus_train.config import Config
from janus_train.data.batch import FrameSource
from janus_train.data.unit_batch import unit_batch
from janus_train.plan.memory import bytes_held, kept_for_parameters
from janus_train.plan.workload import workload_of_part
from janus_train.recipes import Sharding
from janus_train.sharded import expert_costs
from janus_train.strategy import Strategy
from janus_train.trial import largest_step

# Of a device, or of a rank's share of the host: the rest is for the program itself, and for what allocators waste.
_USABLE = 0.8

_BY_TIME = (
    Strategy("backward", "keep", False),
    Strategy("backward", "regather", False),
    Strategy("backward", "keep", True),
    Strategy("backward", "regather", True),
    Strategy("tangent", "keep", False),
    Strategy("tangent", "keep", True),
)
"""The fastest first: 6, 6, 8, 8, 8 and 11 forward passes' worth of products."""


@dataclass(frozen=True)
class MemoryPlan:
    """What a run's largest step will need, and the strategy that follows.

    Attributes:
        strategy: the fastest that fits, or the smallest where none does.
        needed: bytes of the rank that needs most.
        available: bytes of the rank that has least.
        kinds: of these bytes, by kind.
    """

    strategy: Strategy
    needed: int
    available: int
    kinds: dict[str, int]

    @property
    def fits(self) -> bool:
        """Whether the largest step will fit."""
        return self.needed <= self.available

    def text(self) -> str:
        """The plan for a person, in a sentence."""
        way = f"mesh.route={self.strategy.route}"
        if self.strategy.route == "backward":
            way += f" mesh.weights={self.strategy.weights}"
        way += f" model.checkpoint={str(self.strategy.checkpoint).lower()}"
        needed, available = _amount(self.needed), _amount(self.available)
        said = f"memory of a rank in the largest step: {needed} of {available} with {way}"
        if self.fits:
            return said
        largest = max(self.kinds, key=lambda kind: self.kinds[kind])
        return (
            f"warning: {said}, most of it {largest}: it may run out. A larger mesh.unit or a smaller data.pass_edges "
            "needs less; run.memory_gb says what there is"
        )


def plan_memory(
    config: Config, sharding: Sharding, source: FrameSource, mesh: Mesh, device: torch.device
) -> MemoryPlan:
    """The plan for a run, the same on every rank.

    The largest step of the first epoch is cut as it will be, and each rank counts its own part of it.
    """
    number = 8 if config.run.dtype == "float64" else 4
    places = largest_step(source, config)
    share = source.shares(places, mesh.replica)[mesh.replica_index]
    part = unit_batch(source, share or places[:1], mesh.unit_index, mesh.unit, idle=not share)
    shape = sharding.shape(tuple(config.loss.weights))
    rows = part.rows_of_layers(sharding.rows)
    ways = _allowed(config)
    plan = plan_experts(rows, shape.selection, sharding.experts, sharding.expert_hidden, expert_costs(sharding, device))
    workload = workload_of_part(part.part, part.cut)
    kept = kept_for_parameters(config.optim.orthogonal, config.optim.ema_decay > 0)
    own = [
        bytes_held(
            shape, workload, plan, mesh.unit_index, route=way.route, regather=way.weights == "regather",
            checkpoint=way.checkpoint, kept=kept, number=number,
        )
        for way in ways
    ]  # fmt: skip
    available = min(mesh.world.gather_object(available_bytes(config.run.memory_gb, device, mesh.world)))
    everyone = mesh.world.gather_object(own)
    plans = []
    for place, way in enumerate(ways):
        most = max((ranks[place] for ranks in everyone), key=lambda kinds: sum(kinds.values()))
        strategy = replace(way, pass_edges=config.data.pass_edges)
        plans.append(MemoryPlan(strategy, sum(most.values()), available, most))
    return next((plan for plan in plans if plan.fits), min(plans, key=lambda plan: plan.needed))


def available_bytes(asked: float | None, device: torch.device, world: Communicator) -> int:
    """What a rank may use: what the user says, else most of the device, or of its share of the host's memory."""
    if asked is not None:
        return round(asked * 1e9)
    if device.type == "cuda":
        return round(_USABLE * torch.cuda.get_device_properties(device).total_memory)
    hosts = world.gather_object(socket.gethostname())
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return round(_USABLE * total / hosts.count(socket.gethostname()))


def _amount(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _allowed(config: Config) -> Sequence[Strategy]:
    mesh, checkpoint = config.mesh, config.model.checkpoint
    return [
        way
        for way in _BY_TIME
        if mesh.route in ("auto", way.route)
        and (way.route == "tangent" or mesh.weights in ("auto", way.weights))
        and checkpoint in (None, way.checkpoint)
    ]
