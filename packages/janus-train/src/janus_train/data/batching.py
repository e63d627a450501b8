"""Which frames make up a step, and which rank computes which: integers, the same on every rank."""

from __future__ import annotations

import heapq
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


def share_out(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Items for each rank so that the dearest rank is cheap: the longest goes first, to whoever has least.

    Every item goes to exactly one rank; ranks may stay empty. Ties go to the lower rank, so all ranks agree.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load = [(0, rank) for rank in range(ranks)]
    for item in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
        total, rank = heapq.heappop(load)
        shares[rank].append(item)
        heapq.heappush(load, (total + costs[item], rank))
    return [sorted(share) for share in shares]
