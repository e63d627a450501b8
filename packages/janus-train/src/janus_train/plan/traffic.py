"""Bytes that every rank sends in a step, by kind: the numbers that an accounting communicator counts."""

from __future__ import annotations

from collections.abc import Sequence

from janus_comm.accounting import bytes_of_sum
from janus_comm.sharding.layout import bytes_of_a_step, gathers_of_a_step
from janus_moe.planner import ExpertPlan, slice_sizes
from janus_train.plan.shape import ModelShape
from janus_train.plan.workload import Workload

_EXACT = 8
"""Bytes of what is float64 whatever the model is: positions, energies, derivatives in strains."""

KINDS = ("gather", "reduce_scatter", "halo", "experts", "rows", "loss", "all_reduce")
"""In a unit: weights of blocks, their gradients, rows of neighbours, restored experts and their gradients, rows of
experts and their results, energies and strains. Between replicas: gradients of shards."""


def bytes_sent(
    shape: ModelShape,
    workloads: Sequence[Workload],
    plan: ExpertPlan,
    *,
    replicas: int = 1,
    regather: bool = False,
    number: int = 4,
) -> list[dict[str, int]]:
    """Bytes that each rank of a unit sends in a step, by kind.

    Args:
        shape: of the model.
        workloads: of the ranks of the unit.
        plan: of the experts, for these workloads.
        replicas: of the unit; the ranks are those of the first.
        regather: whether weights of blocks are given back after each pass.
        number: bytes of a weight and of a feature.
    """
    unit, layouts = len(workloads), shape.layouts(len(workloads))
    gathers = [*gathers_of_a_step(len(shape.blocks), regather), 1]
    gathered = bytes_of_a_step(layouts, gathers, number) - bytes_of_a_step(layouts, [0] * len(layouts), number)
    reduced = bytes_of_a_step(layouts, [0] * len(layouts), number)
    experts = {kind: table.sum(0) for kind, table in plan.bytes_sent(shape.width, number).items()}
    slices = slice_sizes(shape.expert_hidden, unit)
    halo_row = 3 * _EXACT + len(shape.blocks) * shape.width * number
    found = []
    for rank, workload in enumerate(workloads):
        own_experts = 3 * shape.width * shape.experts * slices[rank]
        sums = [layout.trained_elements for layout in layouts] + [own_experts] * len(shape.layers)
        # Energies and derivatives in strains are added up over the unit, and so are cotangents of both.
        known = bytes_of_sum(workload.structures, _EXACT, rank, unit)
        known += bytes_of_sum(9 * workload.structures, _EXACT, rank, unit)
        found.append(
            {
                "gather": gathered,
                "reduce_scatter": reduced,
                # There and back in the energy's pass and its derivative's.
                "halo": 2 * (workload.sent + workload.received) * halo_row,
                "experts": int(experts["weights"][rank] + experts["gradients"][rank]),
                "rows": int(experts["rows"][rank]),
                "loss": 2 * known,
                "all_reduce": sum(bytes_of_sum(elements, number, 0, replicas) for elements in sums),
            }
        )
    return found
