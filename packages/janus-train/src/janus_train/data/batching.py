"""Which frames make up a step: integers, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from janus_train.data.chosen import Column
from janus_train.data.on_demand import OnDemand

Draws = tuple[int, float]
"""So many frames that follow each other, and how often each is drawn in an epoch."""

_AT_A_TIME = 1 << 20


class Batches(OnDemand[np.ndarray]):
    """The batches of an epoch: its frames in order, and where each batch begins.

    Args:
        order: places of the frames.
        starts: of each batch in it, and its end.
    """

    def __init__(self, order: np.ndarray, starts: Int64[np.ndarray, "batches+1"]) -> None:
        self._order, self._starts = order, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def _item(self, place: int) -> np.ndarray:
        return self._order[self._starts[place] : self._starts[place + 1]].astype(np.int64)


def epoch_batches(costs: Column, budget: int, seed: int, epoch: int, draws: Sequence[Draws] = ()) -> Batches:
    """The frames of an epoch in random order, cut into batches whose costs stay within the budget.

    Every frame is in exactly one batch, or as often as its weight says. A frame that costs more than the budget is a
    batch of its own. Needs four bytes a frame where there are fewer than four thousand million.

    Args:
        costs: of all frames.
        budget: of a batch.
        seed: of the order.
        epoch: counted from 0.
        draws: all frames in their order with their weights; nothing for once each.
    """
    order = drawn(len(costs), draws, seed, epoch)
    np.random.default_rng([seed, epoch]).shuffle(order)
    starts, first, spent = [0], 0, 0
    for begin in range(0, len(order), _AT_A_TIME):
        ends = np.cumsum(np.asarray(costs[order[begin : begin + _AT_A_TIME]], dtype=np.int64))
        # `spent` is what the batch that is open when this part begins has cost by then.
        while True:
            most = budget - spent + (int(ends[first - begin - 1]) if first > begin else 0)
            full = begin + int(np.searchsorted(ends, most, side="right"))
            full = max(full, first + 1)  # a dear frame is taken all the same
            if full >= begin + len(ends):
                break
            starts.append(full)
            first, spent = full, 0
        spent = spent + int(ends[-1]) - (int(ends[first - begin - 1]) if first > begin else 0)
    return Batches(order, np.array([*starts, len(order)] if len(order) else [0], dtype=np.int64))


def drawn(count: int, draws: Sequence[Draws], seed: int, epoch: int) -> np.ndarray:
    """Places of the frames of an epoch, not in random order yet.

    With a weight of 2.5 each frame is there twice, and half of them a third time: another half in the next epoch, so
    that over epochs all are drawn equally often, give or take one.
    """
    kind = np.min_scalar_type(max(count - 1, 0))
    kind = np.promote_types(kind, np.uint32)
    if all(weight == 1 for _, weight in draws):
        return np.arange(count, dtype=kind)
    parts = []
    start = 0
    for number, (frames, weight) in enumerate(draws):
        whole = int(weight)
        parts.append(np.tile(np.arange(start, start + frames, dtype=kind), whole))
        # The frames in an order of their own, taken round and round: each epoch goes on where the last one ended.
        first, beyond = (round((weight - whole) * frames * e) for e in (epoch, epoch + 1))
        if beyond > first:
            turn = np.random.default_rng([seed, 2, number]).permutation(frames)
            parts.append((start + turn[np.arange(first, beyond) % frames]).astype(kind))
        start += frames
    return np.concatenate(parts)


def within_budget(places: Sequence[int], costs: Column, budget: int | None = None) -> list[list[int]]:
    """The same frames in their order, in groups that cost at most so much; one that costs more is a group of its own.

    Args:
        places: of the frames.
        costs: of all frames.
        budget: of a group; None for no limit.
    """
    groups: list[list[int]] = []
    spent = 0
    of_places: list[int] = costs[np.asarray(places, dtype=np.int64)].tolist()
    for place, cost in zip(places, of_places, strict=True):
        if not groups or (budget is not None and spent + cost > budget):
            groups.append([])
            spent = 0
        groups[-1].append(place)
        spent += cost
    return groups
