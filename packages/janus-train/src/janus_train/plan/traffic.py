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

KINDS = ("gather", "reduce_scatter", "halo", "experts", "rows", "sums", "all_reduce")
"""In a unit: weights of blocks, their gradients, rows of neighbours, restored experts and their gradients, rows of
experts and their results. Over all ranks: losses, norms, and gradients of what every rank has whole. Between replicas:
gradients of shards."""


def bytes_sent(
    shape: ModelShape,
    workloads: Sequence[Workload],
    plan: ExpertPlan,
    *,
    replicas: int = 1,
    replica: int = 0,
    regather: bool = False,
    number: int = 4,
) -> list[dict[str, int]]:
    """Bytes that each rank of a unit sends in a step, by kind.

    Args:
        shape: of the model.
        workloads: of the ranks of the unit.
        plan: of the experts, for these workloads.
        replicas: of the unit.
        replica: which of them this is.
        regather: whether weights of blocks are given back after each pass.
        number: bytes of a weight and of a feature.
    """
    unit, layouts = len(workloads), shape.layouts(len(workloads))
    gathers = [*gathers_of_a_step(len(shape.blocks), regather), 1]
    reduced = bytes_of_a_step(layouts, [0] * len(layouts), number)
    gathered = bytes_of_a_step(layouts, gathers, number) - reduced
    experts = {kind: table.sum(0) for kind, table in plan.bytes_sent(shape.width, number).items()}
    halo_row = 3 * _EXACT + len(shape.blocks) * shape.width * number
    return [
        {
            "gather": gathered,
            "reduce_scatter": reduced,
            # There and back in the energy's pass and its derivative's.
            "halo": 2 * (workload.sent + workload.received) * halo_row,
            "experts": int(experts["weights"][rank] + experts["gradients"][rank]),
            "rows": int(experts["rows"][rank]),
            "sums": _sums(shape, workload, rank, unit, replica, replicas, number),
            "all_reduce": _between_replicas(shape, rank, unit, replica, replicas, number),
        }
        for rank, workload in enumerate(workloads)
    ]


def _sums(shape: ModelShape, workload: Workload, rank: int, unit: int, replica: int, replicas: int, number: int) -> int:
    """Losses and whether to stop, the norm of the gradient, energies and strains of cut structures; router tables."""
    place, world = replica * unit + rank, replicas * unit
    of_structure = 10 if "stress" in shape.terms else 1
    return (
        bytes_of_sum(len(shape.terms) + 2, _EXACT, place, world)
        + bytes_of_sum(1, _EXACT, rank, unit)
        + bytes_of_sum(workload.cut * of_structure, _EXACT, rank, unit)
        + bytes_of_sum(shape.replicated, number, place, world)
    )


def _between_replicas(shape: ModelShape, rank: int, unit: int, replica: int, replicas: int, number: int) -> int:
    """Gradients of a rank's shards of blocks, and of its slices of the two stores of experts of each layer."""
    matrix = shape.experts * shape.width * slice_sizes(shape.expert_hidden, unit)[rank]
    sums = [layout.trained_elements for layout in shape.layouts(unit)] + [2 * matrix, matrix] * len(shape.layers)
    return sum(bytes_of_sum(elements, number, replica, replicas) for elements in sums)
