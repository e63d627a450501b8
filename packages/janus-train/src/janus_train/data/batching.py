"""Which frames make up a step: integers, the same on every rank."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64


def epoch_batches(
    costs: Int64[np.ndarray, "frames"], budget: int, seed: int, epoch: int
) -> list[Int64[np.ndarray, "batch"]]:
    """The frames of an epoch in random order, cut into batches whose costs stay within the budget.

    Every frame is in exactly one batch. A frame that costs more than the budget is a batch of its own.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(costs))
    batches: list[list[int]] = []
    spent = budget + 1
    for frame in order.tolist():
        cost = int(costs[frame])
        if spent + cost > budget:
            batches.append([])
            spent = 0
        batches[-1].append(frame)
        spent += cost
    return [np.array(batch, dtype=np.int64) for batch in batches]
