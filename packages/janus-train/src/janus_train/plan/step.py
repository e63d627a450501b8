"""The plan of a training step: memory, traffic, operations and time of its ranks, from sizes of a model and of data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from janus_graph.packing import CostModel, share_out
from janus_moe.cost import CostModel as ExpertCosts
from janus_moe.planner import plan_experts
from janus_train.plan.expected import batch_of_edges, unit_workloads, work_of
from janus_train.plan.machine import Machine
from janus_train.plan.memory import bytes_held, kept_for_parameters
from janus_train.plan.products import computed_again, flops_of_a_step
from janus_train.plan.shape import ModelShape, flops_of_experts, flops_of_gates
from janus_train.plan.statistics import DataStatistics, StructureSize
from janus_train.plan.time import Seconds, seconds_of_a_step
from janus_train.plan.traffic import bytes_sent
from janus_train.plan.workload import Workload, rows_of_layers

# Replicas whose batches are drawn, structures of one, and of all of them. More are taken to be multiples of these.
_REPLICAS, _STRUCTURES, _ALL_STRUCTURES = 256, 2048, 40_000


@dataclass(frozen=True)
class Layout:
    """How a step is spread over ranks.

    Attributes:
        replicas: of a unit.
        unit: ranks that share one batch.
        regather: whether weights of blocks are given back after each pass.
        pass_edges: most edges that a rank computes at a time; None for no limit.
        checkpoint: whether blocks are computed again when a derivative needs what is inside.
        orthogonal: whether matrices move along the orthogonal factor of their momentum.
        moving_mean: whether there is a moving mean of the weights.
        number: bytes of a weight and of a feature.
    """

    replicas: int = 1
    unit: int = 1
    regather: bool = False
    pass_edges: int | None = None
    checkpoint: bool = False
    orthogonal: bool = False
    moving_mean: bool = False
    number: int = 4

    @property
    def devices(self) -> int:
        """All ranks."""
        return self.replicas * self.unit

    def passes(self, edges: int) -> int:
        """In how many passes a rank computes its part of a step with so many edges."""
        return 1 if self.pass_edges is None else max(1, -(-edges // (self.devices * self.pass_edges)))


@dataclass(frozen=True)
class StepPlan:
    """What a step will need.

    Attributes:
        layout: of the ranks.
        machine: its name.
        work: atoms and edges of the step; its passes; atoms, edges and rows of neighbours, in a pass, of the rank with
            most to do.
        memory: bytes by kind of the rank that holds most.
        sent: bytes by kind of the rank that sends most.
        flops: of the rank with most products.
        all_flops: of all ranks, units having as many as their work goes.
        evenness: work of a mean unit over that of the fullest one.
        seconds: of the slowest rank.
        peak: floating point operations a second of a device at best.
    """

    layout: Layout
    machine: str
    work: dict[str, int]
    memory: dict[str, int]
    sent: dict[str, int]
    flops: int
    all_flops: int
    evenness: float
    seconds: Seconds
    peak: float

    @property
    def of_peak(self) -> float:
        """What the step makes of the devices' peak, with overlap."""
        return self.all_flops / self.layout.devices / self.seconds.with_overlap / self.peak

    @property
    def efficiency(self) -> float:
        """Computing over all of the step, with overlap."""
        return self.seconds.computing / self.seconds.with_overlap

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **{name: value for name, value in asdict(self).items() if name != "seconds"},
            "devices": self.layout.devices,
            "seconds": dict(self.seconds.parts),
            "seconds_without_overlap": self.seconds.without_overlap,
            "seconds_with_overlap": self.seconds.with_overlap,
            "of_peak": self.of_peak,
            "efficiency": self.efficiency,
        }


def plan_step(shape: ModelShape, data: DataStatistics, edges: int, layout: Layout, machine: Machine) -> StepPlan:
    """The plan of a step with about so many edges over all ranks.

    Structures are dealt out to replicas, and within a unit to its ranks, as training does it. The unit that has most to
    do is planned: all others wait for it.

    Args:
        shape: of the model.
        data: sizes of structures.
        edges: of one step, over all ranks.
        layout: of the ranks.
        machine: rates.
    """
    passes = layout.passes(edges)
    drawn, times = _sample(data, edges // passes, layout.replicas)
    whole = batch_of_edges(data, edges * drawn // (layout.replicas * times * passes))
    batch, evenness = _fullest(whole, drawn)
    workloads = [workload.times(times) for workload in unit_workloads(batch, layout.unit, data.cutoff)]
    cost = ExpertCosts.from_rates(
        shape.width,
        shape.expert_hidden,
        flops_per_second=machine.peak_tflops * 1e12 * machine.product_rate,
        bytes_per_second=machine.within.gb_per_s * 1e9,
        seconds_per_exchange=machine.within.latency_us * 1e-6,
        bytes_per_number=layout.number,
    )
    rows = rows_of_layers(workloads, shape.layers)
    experts = plan_experts(rows, shape.selection, shape.experts, shape.expert_hidden, cost)
    sent = bytes_sent(
        shape, workloads, experts, replicas=layout.replicas, regather=layout.regather, number=layout.number
    )
    memory = [
        bytes_held(
            shape, workload, experts, rank, regather=layout.regather, checkpoint=layout.checkpoint,
            kept=kept_for_parameters(layout.orthogonal, layout.moving_mean), number=layout.number,
        )
        for rank, workload in enumerate(workloads)
    ]  # fmt: skip
    of_pass = flops_of_ranks(shape, workloads, experts.load.pairs.sum(0).tolist(), layout.checkpoint)
    flops = [passes * own for own in of_pass]
    fullest, busiest = max(memory, key=_total), max(sent, key=_total)
    busiest = {kind: passes * count for kind, count in busiest.items()}
    # Slices to where matrices are whole, and back: nearly all that a rank holds.
    matrices = 2 * fullest["parameters"] * (layout.unit - 1) // layout.unit
    busiest["matrices"] = matrices if layout.orthogonal else 0
    seconds = seconds_of_a_step(
        shape, machine, flops=max(flops), memory=fullest, sent=busiest, unit=layout.unit, replicas=layout.replicas,
        regather=layout.regather, passes=passes,
    )  # fmt: skip
    most = workloads[int(np.argmax(flops))]
    return StepPlan(
        layout=layout,
        machine=machine.name,
        work={
            "atoms": sum(size.all_atoms for size in whole) * layout.replicas * times * passes // drawn,
            "edges": sum(size.all_edges for size in whole) * layout.replicas * times * passes // drawn,
            "passes": passes,
            "atoms of a rank": most.atoms,
            "edges of a rank": most.edges,
            "neighbours elsewhere": most.received,
        },
        memory=fullest,
        sent=busiest,
        flops=max(flops),
        all_flops=round(layout.replicas * sum(flops) * evenness),
        evenness=evenness,
        seconds=seconds,
        peak=machine.peak_tflops * 1e12,
    )


def flops_of_ranks(
    shape: ModelShape, workloads: Sequence[Workload], pairs: Sequence[int], checkpoint: bool = False
) -> list[int]:
    """Floating point operations of each rank that computes so many pairs of a row and an expert.

    On one rank alone experts are whole, and their gates get gradients by products.
    """
    products = computed_again(shape.products) if checkpoint else shape.products
    found = [
        flops_of_a_step(products, workload.counts) + flops_of_experts(shape, own, checkpoint)
        for workload, own in zip(workloads, pairs, strict=True)
    ]
    if len(workloads) == 1:
        found[0] += flops_of_gates(shape, (rows_of_layers(workloads, shape.layers) > 0).sum((1, 2)).tolist())
    return found


def _sample(data: DataStatistics, edges: int, replicas: int) -> tuple[int, int]:
    """How many replicas to draw batches for, and how often each structure in them stands for one."""
    mean = sum(size.all_edges for size in data.sizes) / len(data.sizes)
    of_unit = edges / max(mean, 1.0) / replicas
    times = max(1, round(of_unit / _STRUCTURES))
    return min(replicas, _REPLICAS, max(1, int(_ALL_STRUCTURES * times / max(of_unit, 1.0)))), times


def _fullest(batch: Sequence[StructureSize], replicas: int) -> tuple[list[StructureSize], float]:
    """The structures of the unit that has most to do, and what a mean one has over it."""
    costs = [work_of(size, CostModel()) for size in batch]
    shares = share_out(costs, [size.all_atoms for size in batch], replicas)
    totals = [sum(costs[place] for place in share) for share in shares]
    fullest = totals.index(max(totals))
    return [batch[place] for place in shares[fullest]], sum(totals) / replicas / max(totals[fullest], 1)


def _total(kinds: dict[str, int]) -> int:
    return sum(kinds.values())
