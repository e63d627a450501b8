"""How fast a run computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from janus_train.data.batch import Batch, FrameSource
from janus_train.recipes import Sharding
from janus_train.step import Prepared

OperationsOf = Callable[[Prepared], int]
"""Floating point operations of this rank's part of a step."""


@dataclass
class Throughput:
    """What was computed since a moment.

    Attributes:
        began: the moment, of `time.monotonic`.
        structures: of all ranks.
        atoms: theirs.
        edges: theirs.
        operations: floating point operations of this rank.
    """

    began: float = field(default_factory=time.monotonic)
    structures: int = 0
    atoms: int = 0
    edges: int = 0
    operations: int = 0

    def add(self, source: FrameSource, places: np.ndarray, operations: int) -> None:
        """A step on the frames at these places."""
        self.structures += len(places)
        self.atoms += int(source.atoms[places].sum())
        self.edges += int(source.edges[places].sum())
        self.operations += operations

    def rates(self) -> dict[str, float]:
        """All of it per second, as the log has it; `tflops_per_s` only where operations are counted."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        rates = {
            "structures_per_s": round(self.structures / seconds, 2),
            "atoms_per_s": round(self.atoms / seconds, 1),
            "edges_per_s": round(self.edges / seconds),
        }
        return rates | ({"tflops_per_s": float(f"{self.operations / seconds / 1e12:.4g}")} if self.operations else {})


def operations_counter(sharding: Sharding | None, terms: Sequence[str]) -> OperationsOf:
    """Counts the products of matrices of a step: those that must be, without what is computed twice to save memory.

    The counts are those of `janus-train plan`. Where ranks share experts, each counts those that its own rows need.

    Args:
        sharding: knows the products of a model; nothing is counted without.
        terms: of the loss.
    """
    if sharding is None:
        return lambda prepared: 0
    from janus_train.plan.step import flops_of_ranks
    from janus_train.plan.workload import workload_of_graph

    shape = sharding.shape(terms)

    def operations(prepared: Prepared) -> int:
        total = 0
        for batch in prepared.passes:
            if batch is None:
                continue
            workload = workload_of_graph(batch.graph if isinstance(batch, Batch) else batch.part.graph)
            rows = sum(int(workload.rows_of_element(over).sum()) for over in shape.layers)
            total += flops_of_ranks(shape, [workload], [shape.top_k * rows])[0]
        return total

    return operations
