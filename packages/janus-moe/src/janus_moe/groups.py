"""Rows grouped by element: who has how many, known on the host before a tensor moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from jaxtyping import Int32, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ElementGroups:
    """A plan for rows that are sorted by element: each element that is present owns one contiguous slice.

    Attributes:
        atomic_numbers: elements that have rows, ascending, as host integers.
        elements: the same where the rows are.
        ends: one past the last row of each element (what grouped products ask for).
        counts: rows of each element, as host integers.
    """

    atomic_numbers: tuple[int, ...]
    elements: Int64[Tensor, "present"]
    ends: Int32[Tensor, "present"]
    counts: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Number of rows over all elements."""
        return sum(self.counts)


class GroupRows(Protocol):
    """Makes the plan for rows sorted by element: `group_rows`, or one that knows more about the step."""

    def __call__(
        self, atomic_numbers: Sequence[int], counts: Sequence[int], device: torch.device | str
    ) -> ElementGroups:
        """The plan for rows of which `counts[k]` consecutive ones belong to `atomic_numbers[k]`."""
        ...


def group_rows(
    atomic_numbers: Sequence[int], counts: Sequence[int], device: torch.device | str = "cpu"
) -> ElementGroups:
    """The plan for rows of which `counts[k]` consecutive ones belong to `atomic_numbers[k]`; empty groups are dropped.

    Raises:
        ValueError: the two differ in length, the elements do not ascend, or a count is negative.
    """
    if len(atomic_numbers) != len(counts):
        raise ValueError(f"{len(atomic_numbers)} elements but {len(counts)} counts; give one count per element")
    if any(a >= b for a, b in pairwise(atomic_numbers)):
        raise ValueError(f"elements must ascend and not repeat, got {list(atomic_numbers)}; sort the rows by element")
    if any(count < 0 for count in counts):
        raise ValueError(f"row counts cannot be negative: {list(counts)}")
    present = [(z, count) for z, count in zip(atomic_numbers, counts, strict=True) if count > 0]
    return ElementGroups(
        atomic_numbers=tuple(z for z, _ in present),
        elements=torch.tensor([z for z, _ in present], dtype=torch.int64, device=device),
        ends=torch.tensor(list(accumulate(count for _, count in present)), dtype=torch.int32, device=device),
        counts=tuple(count for _, count in present),
    )
