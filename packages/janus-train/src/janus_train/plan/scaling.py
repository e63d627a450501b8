"""How a step scales: more devices for more data, or for the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

from janus_train.plan.machine import Machine
from janus_train.plan.shape import ModelShape
from janus_train.plan.statistics import DataStatistics
from janus_train.plan.step import Layout, StepPlan, plan_step

LARGEST = 45_056
"""Devices of the largest published run (arXiv 2604.15821)."""


@dataclass(frozen=True)
class ScalingRow:
    """A step on so many devices.

    Attributes:
        plan: of the step.
        efficiency: edges a second and device, over those of the first row.
    """

    plan: StepPlan
    efficiency: float


def replica_counts(unit: int, devices: int) -> list[int]:
    """Replicas from one to as many as fit, eight times as many each time."""
    most = max(1, devices // unit)
    counts = [1]
    while counts[-1] * 8 < most:
        counts.append(counts[-1] * 8)
    return [*counts, most] if counts[-1] != most else counts


def weak_scaling(
    shape: ModelShape, data: DataStatistics, edges: int, layout: Layout, machine: Machine, devices: int = LARGEST
) -> list[ScalingRow]:
    """Steps on more and more devices, each with as many edges as a device of the layout has of `edges`."""
    counts = replica_counts(layout.unit, devices)
    of_one = edges / layout.replicas
    return _rows(
        [plan_step(shape, data, round(of_one * count), replace(layout, replicas=count), machine) for count in counts]
    )


def strong_scaling(
    shape: ModelShape, data: DataStatistics, edges: int, layout: Layout, machine: Machine, devices: int = LARGEST
) -> list[ScalingRow]:
    """Steps with these edges on more and more devices."""
    counts = replica_counts(layout.unit, devices)
    return _rows([plan_step(shape, data, edges, replace(layout, replicas=count), machine) for count in counts])


def _rows(plans: list[StepPlan]) -> list[ScalingRow]:
    rates = [plan.work["edges"] / plan.seconds.with_overlap / plan.layout.devices for plan in plans]
    return [ScalingRow(plan, rate / rates[0]) for plan, rate in zip(plans, rates, strict=True)]
