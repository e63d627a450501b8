"""Which frames are learnt from, and which are set aside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt64

from janus_train.data.columns import SPLITS, Columns, formulas, mixed
from janus_train.data.on_demand import starts_of
from janus_train.failure import UserError

Mask = Bool[np.ndarray, "rows"]

_PARTS = 16
_AT_A_TIME = 1 << 20


def marked(columns: Columns, *splits: str) -> Mask:
    """Rows that are marked as one of these splits."""
    found = np.zeros(len(columns), dtype=bool)
    for split in splits:
        found |= np.asarray(columns.split) == SPLITS.index(split)
    return found


def set_aside(shelves: Sequence[Columns], by: str, fraction: float, seed: int) -> list[Mask]:
    """Rows for validation where nothing is marked; whole groups, chosen at random, of all that is not marked "test".

    Whether a group is chosen depends on its name, the seed, and how many groups there are, not on the order of files.

    Args:
        shelves: columns of the frames, in their order.
        by: what stays together: "group" (a frame without one stands alone), "composition" (all frames of a formula), or
            "frame" (nothing).
        fraction: of the groups.
        seed: of the choice.

    Raises:
        UserError: there is one group only.
    """
    starts = starts_of([len(columns) for columns in shelves])
    lots = [_lots(columns, by, start, seed) for columns, start in zip(shelves, starts[:-1].tolist(), strict=True)]
    choice = [~marked(columns, "test") for columns in shelves]
    # Lots are spread evenly, so that a sixteenth of their range at a time needs a sixteenth of the memory.
    sizes = [len(_distinct(lots, choice, part)) for part in range(_PARTS)]
    if sum(sizes) < 2:
        raise UserError(
            f"the data have one {by} only, so none can be set aside for validation; give data.val"
            + ("" if by == "frame" else ", or data.split_by=frame")
        )
    count = min(sum(sizes) - 1, max(1, round(fraction * sum(sizes))))
    part = int(np.searchsorted(np.cumsum(sizes), count))
    last = _distinct(lots, choice, part)[count - sum(sizes[:part]) - 1]
    return [(lot <= last) & mask for lot, mask in zip(lots, choice, strict=True)]


def _lots(columns: Columns, by: str, start: int, seed: int) -> UInt64[np.ndarray, "rows"]:
    """A random number for each row, the same for rows that stay together."""
    lots = np.zeros(len(columns), dtype=np.uint64)
    for first in range(0, len(columns), _AT_A_TIME):
        rows = slice(first, min(first + _AT_A_TIME, len(columns)))
        alone = mixed(np.arange(start + rows.start, start + rows.stop, dtype=np.uint64), 2 * seed + 1)
        if by == "composition":
            lots[rows] = mixed(formulas(columns.part(rows.start, rows.stop)), 2 * seed)
        elif by == "frame":
            lots[rows] = alone
        else:
            group = np.asarray(columns.group[rows])
            lots[rows] = np.where(group > 0, mixed(group, 2 * seed), alone)
    return lots


def _distinct(lots: Sequence[np.ndarray], masks: Sequence[Mask], part: int) -> np.ndarray:
    """The different ones of a part of their range, ascending."""
    low, high = (np.uint64(part * (2**64 // _PARTS)), np.uint64((part + 1) * (2**64 // _PARTS) - 1))
    return np.unique(
        np.concatenate([lot[mask & (lot >= low) & (lot <= high)] for lot, mask in zip(lots, masks, strict=True)])
    )
