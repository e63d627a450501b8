"""Which rows of which parameter each rank keeps, and where they lie in a bucket's buffers: integers only.

Parameters are cut along their first dimension as `torch.chunk` does and FSDP2 does: ``rows = ceil(n / ranks)`` for
each rank in turn until there are none left. The last ranks may get fewer, or none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """One parameter of a bucket.

    Attributes:
        shape: of the whole parameter.
        ranks: that share it.
        shard_start: where its rows begin in a rank's shard of the bucket, elements.
        start: where it begins in the whole bucket, elements.
    """

    shape: tuple[int, ...]
    ranks: int
    shard_start: int
    start: int

    @property
    def rows(self) -> int:
        """Size of the first dimension; a scalar is one row."""
        return self.shape[0] if self.shape else 1

    @property
    def width(self) -> int:
        """Elements of a row."""
        return math.prod(self.shape[1:])

    @property
    def elements(self) -> int:
        """Elements of the whole parameter."""
        return self.rows * self.width

    @property
    def rows_a_rank(self) -> int:
        """Rows that a rank has room for: as many as the first rank keeps."""
        return -(-self.rows // self.ranks)

    @property
    def room(self) -> int:
        """Elements that a rank has room for."""
        return self.rows_a_rank * self.width

    def rows_of(self, rank: int) -> range:
        """The rows that a rank keeps."""
        first = min(self.rows, rank * self.rows_a_rank)
        return range(first, min(self.rows, first + self.rows_a_rank))


@dataclass(frozen=True)
class BucketLayout:
    """Parameters that are gathered together: shards of equal size, padded, one behind the other in order of ranks.

    Attributes:
        slots: the parameters, those that are trained first.
        trained: how many are trained.
        ranks: that share them.
    """

    slots: tuple[Slot, ...]
    trained: int
    ranks: int

    @property
    def shard_elements(self) -> int:
        """Elements of one rank's shard, padding included: what a gather brings from it."""
        return sum(slot.room for slot in self.slots)

    @property
    def trained_elements(self) -> int:
        """Elements of one rank's shard of the gradient, padding included: what a reduce-scatter leaves it."""
        return sum(slot.room for slot in self.slots[: self.trained])

    @property
    def elements(self) -> int:
        """Elements of the whole parameters."""
        return sum(slot.elements for slot in self.slots)


def bucket_layout(shapes: Sequence[tuple[int, ...]], trained: int, ranks: int) -> BucketLayout:
    """The layout of parameters of these shapes, the first ones trained; maybe none, or fewer rows than ranks."""
    slots, shard_start, start = [], 0, 0
    for shape in shapes:
        slot = Slot(tuple(shape), ranks, shard_start, start)
        slots.append(slot)
        shard_start, start = shard_start + slot.room, start + slot.elements
    return BucketLayout(tuple(slots), trained, ranks)


def without_repeats(visits: Sequence[int]) -> list[int]:
    """The same visits, those that follow one of the same bucket left out."""
    return [bucket for place, bucket in enumerate(visits) if place == 0 or visits[place - 1] != bucket]


def gathers_of_a_step(blocks: int, regather: bool) -> list[int]:
    """How often one step by double backward gathers the bucket of each block, if blocks are called once each.

    Kept: once. Gathered again: in the forward pass, in the inner one and twice in the outer one, but not where a pass
    begins with the block that the one before has ended with, which happens twice with the last block and once with the
    first.
    """
    if not regather or blocks < 2:
        return [1] * blocks
    return [3, *[4] * (blocks - 2), 2]


def bytes_of_a_step(layouts: Sequence[BucketLayout], gathers: Sequence[int], element_bytes: int) -> int:
    """Bytes a rank sends in one step for parameters: so many gathers of each bucket and one reduce-scatter."""
    return sum(
        (layout.ranks - 1) * element_bytes * (times * layout.shard_elements + layout.trained_elements)
        for layout, times in zip(layouts, gathers, strict=True)
    )
