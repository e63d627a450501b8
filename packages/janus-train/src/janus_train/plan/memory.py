"""Bytes that a rank holds in a step, by kind."""

from __future__ import annotations

from janus_moe.planner import ExpertPlan, slice_sizes
from janus_train.plan.shape import ModelShape
from janus_train.plan.workload import Workload

MOMENTS = 2
"""Numbers that the optimiser (AdamW) keeps for a parameter."""

KEPT_WHEN_COMPUTED_AGAIN = 0.9
"""Of activations, where blocks are computed again: measured on `nano` and `micro` (0.88 to 0.92). The inner pass keeps
its graph, and what that needs of the forward pass with it."""


def bytes_held(
    shape: ModelShape,
    workload: Workload,
    plan: ExpertPlan,
    rank: int,
    *,
    regather: bool = False,
    checkpoint: bool = False,
    moving_mean: bool = True,
    number: int = 4,
) -> dict[str, int]:
    """Bytes of each kind when a step holds most: as the outer pass begins, gradients counted as if they were there.

    Args:
        shape: of the model.
        workload: of the rank.
        plan: of the experts.
        rank: of the unit.
        regather: whether weights of blocks are given back after each pass.
        checkpoint: whether blocks are computed again when a derivative needs what is inside.
        moving_mean: whether there is a moving mean of the weights.
        number: bytes of a weight and of a feature.
    """
    unit = plan.ranks
    layouts = shape.layouts(unit)
    units = len(shape.layers) * shape.experts * slice_sizes(shape.expert_hidden, unit)[rank]
    own = sum(layout.shard_elements for layout in layouts) + shape.replicated + units * 3 * shape.width
    *blocks, rest = (layout.elements for layout in layouts)
    two = sum(sorted(blocks)[-2:])
    restored = int(plan.load.restored[:, rank].sum()) * 3 * shape.width * shape.expert_hidden
    ghosts = workload.received * shape.width * len(shape.blocks)
    activations = sum(kept.total(workload.counts) for kept in shape.kept)
    numbers = {
        "parameters": own,
        "gradients": own,
        "optimiser": MOMENTS * own,
        "moving mean": own if moving_mean else 0,
        "gathered weights": rest + (two if regather else sum(blocks)),
        # Whole until they are reduced; gathered again, the inner half of the outer pass leaves those of all blocks.
        "gathered gradients": rest + sum(blocks) if regather else rest + two,
        "restored experts": 2 * restored,
        "activations": round(activations * (KEPT_WHEN_COMPUTED_AGAIN if checkpoint else 1)),
        # Rows of neighbours, and their cotangents in the inner pass.
        "halo": 2 * ghosts,
    }
    return {kind: count * number for kind, count in numbers.items()}
