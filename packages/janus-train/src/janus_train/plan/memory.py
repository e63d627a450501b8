"""Bytes that a rank holds in a step, by kind."""

from __future__ import annotations

from collections.abc import Mapping

from janus_moe.planner import ExpertPlan, slice_sizes
from janus_train.plan.shape import ModelShape
from janus_train.plan.workload import Workload

KEPT_WHEN_COMPUTED_AGAIN = 0.9
"""Of activations, where blocks are computed again: measured on `nano` and `micro` (0.88 to 0.92). The inner pass keeps
its graph, and what that needs of the forward pass with it."""


KEPT_BY_TANGENTS = 1.0
"""Of the same, on the route by tangents, whose forward pass carries two of everything and keeps no inner pass: 0.93 and
1.03 on `nano` and `micro`."""

KEPT_OF_A_BLOCK_BY_TANGENTS = 1.3
"""Of what a block keeps, while it is computed again with tangents and differentiated."""


def kept_for_parameters(orthogonal: bool, moving_mean: bool) -> dict[str, int]:
    """Numbers that a training keeps for a parameter, by kind.

    With the orthogonal factor of the momentum it is the momentum alone: what is no matrix, and has two moments then
    too, is next to nothing.
    """
    return {"optimiser": 1 if orthogonal else 2, "moving mean": int(moving_mean)}


def bytes_held(
    shape: ModelShape,
    workload: Workload,
    plan: ExpertPlan,
    rank: int,
    *,
    route: str = "backward",
    regather: bool = False,
    checkpoint: bool = False,
    kept: Mapping[str, int],
    number: int = 4,
) -> dict[str, int]:
    """Bytes of each kind when a step holds most: as the outer pass begins, gradients counted as if they were there.

    Args:
        shape: of the model.
        workload: of the rank.
        plan: of the experts.
        rank: of the unit.
        route: to the gradient, "backward" or "tangent"; by tangents one block's weights are whole at a time.
        regather: whether weights of blocks are given back after each pass.
        checkpoint: whether blocks are computed again when a derivative needs what is inside.
        kept: numbers that are kept for a parameter beside itself and its gradient, by kind; `kept_for_parameters`.
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
    if route == "tangent":
        gathered = gradients = rest + max(blocks)
    else:
        gathered = rest + (two if regather else sum(blocks))
        # Whole until they are reduced; gathered again, the inner half of the outer pass leaves those of all blocks.
        gradients = rest + sum(blocks) if regather else rest + two
    numbers = {
        "parameters": own,
        "gradients": own,
        **{kind: count * own for kind, count in kept.items()},
        "gathered weights": gathered,
        "gathered gradients": gradients,
        "restored experts": 2 * restored,
        "activations": _activations(shape, workload, route, checkpoint),
        # Rows of neighbours, and their cotangents in the inner pass.
        "halo": 2 * ghosts,
    }
    return {kind: count * number for kind, count in numbers.items()}


def _activations(shape: ModelShape, workload: Workload, route: str, checkpoint: bool) -> int:
    """Numbers that are kept for derivatives, when most are."""
    counts = workload.counts
    everything = sum(kept.total(counts) for kept in shape.kept)
    if route == "backward":
        return round(everything * (KEPT_WHEN_COMPUTED_AGAIN if checkpoint else 1))
    if not checkpoint:
        return round(everything * KEPT_BY_TANGENTS)
    of_block = [
        sum(kept.total(counts) for kept in shape.kept if kept.block == block) for block in range(len(shape.blocks))
    ]
    # What goes into each block is kept, a value and a tangent of each row of atoms and edges.
    inputs = 2 * len(shape.blocks) * (workload.atoms * shape.width + workload.edges * shape.edge_width)
    outside = everything - sum(of_block)
    return round(outside + max(of_block) * KEPT_OF_A_BLOCK_BY_TANGENTS) + inputs
