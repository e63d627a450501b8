"""Seconds of a step, part by part, with and without communication that hides behind computing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from janus_comm.sharding.layout import gathers_of_a_step
from janus_train.plan.machine import Machine
from janus_train.plan.shape import ModelShape

ELEMENTWISE_PASSES = 12
"""Bytes that operations other than products read and write in a step, for each byte kept: 11.6 to 12 where activations
are most of it, counted on the operations of `nano` and `micro`."""
_OUTER_SHARE = 4 / 6
# Numbers that an update reads and writes for a parameter: weight, gradient, two moments, mean.
_UPDATE = 9


@dataclass(frozen=True)
class Seconds:
    """Where the time of a step goes.

    Attributes:
        parts: seconds of each part on the slowest rank: `products`, `elementwise`, `starting` (what the host needs to
            start operations beyond what the device needs for them), `update`, and each kind of communication.
    """

    parts: Mapping[str, float]

    @property
    def computing(self) -> float:
        """All but communication."""
        return sum(self.parts[name] for name in ("products", "elementwise", "starting", "update"))

    @property
    def without_overlap(self) -> float:
        """One after the other."""
        return sum(self.parts.values())

    @property
    def with_overlap(self) -> float:
        """Weights on their way while others are computed with, and gradients while the outer pass goes on; neighbours
        and experts are waited for."""
        gradients = min(self.parts["reduce_scatter"] + self.parts["all_reduce"], _OUTER_SHARE * self.computing)
        weights = min(self.parts["gather"], self.computing - gradients)
        return self.without_overlap - gradients - weights


def seconds_of_a_step(
    shape: ModelShape,
    machine: Machine,
    *,
    flops: int,
    memory: Mapping[str, int],
    sent: Mapping[str, int],
    unit: int,
    replicas: int,
    regather: bool,
    passes: int = 1,
) -> Seconds:
    """Modelled seconds of the slowest rank.

    Args:
        shape: of the model.
        machine: rates.
        flops: of the products of a rank.
        memory: bytes that it holds, by kind.
        sent: bytes that it sends, by kind.
        unit: ranks of a unit.
        replicas: of it.
        regather: whether weights of blocks are given back after each pass.
        passes: that a rank computes its part of a step in.
    """
    blocks, layers = len(shape.blocks), len(shape.layers)
    calls = {
        "gather": sum(gathers_of_a_step(blocks, regather)) + 1,
        "reduce_scatter": blocks + 1,
        "halo": 4 * (blocks + 1),
        "experts": 2 * layers,
        "rows": 8 * layers if sent["rows"] else 0,
        "sums": 4,
        "all_reduce": 2 * (blocks + 1 + layers),
        "matrices": 2 if sent.get("matrices") else 0,
    }
    elementwise = passes * ELEMENTWISE_PASSES * memory["activations"] / (machine.memory_gb_per_s * 1e9)
    products = flops / (machine.peak_tflops * 1e12 * machine.product_rate)
    parts = {
        "products": products,
        "elementwise": elementwise,
        "starting": max(0.0, passes * shape.operations * machine.operation_us * 1e-6 - products - elementwise),
        "update": _UPDATE * memory["parameters"] / (machine.memory_gb_per_s * 1e9),
    }
    for kind, bytes_sent in sent.items():
        across = kind == "all_reduce" and unit * replicas > machine.devices_per_node
        send = machine.seconds_between_nodes if across else machine.seconds_to_send
        often = calls[kind] if kind == "matrices" else passes * calls[kind]
        parts[kind] = send(bytes_sent, often, replicas if kind == "all_reduce" else unit)
    return Seconds(parts)
