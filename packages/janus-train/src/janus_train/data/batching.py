"""Which frames make up a step: integers, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64


def epoch_batches(
    costs: Int64[np.ndarray, "frames"], budget: int, seed: int, epoch: int
) -> list[Int64[np.ndarray, "batch"]]:
    """The frames of an epoch in random order, cut into batches whose costs stay within the budget.

    Every frame is in exactly one batch. A frame that costs more than the budget is a batch of its own.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(costs))
    return [np.array(batch, dtype=np.int64) for batch in within_budget(order.tolist(), costs, budget)]


def within_budget(
    places: Sequence[int], costs: Int64[np.ndarray, "frames"], budget: int | None = None
) -> list[list[int]]:
    """The same frames in their order, in groups that cost at most so much; one that costs more is a group of its own.

    Args:
        places: of the frames.
        costs: of all frames.
        budget: of a group; None for no limit.
    """
    groups: list[list[int]] = []
    spent = 0
    for place in places:
        cost = int(costs[place])
        if not groups or (budget is not None and spent + cost > budget):
            groups.append([])
            spent = 0
        groups[-1].append(place)
        spent += cost
    return groups
