"""What a step keeps for its derivatives, as numbers for each atom, edge or place in a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """Tensors of one kind that live from the forward or inner pass to the outer one.

    Attributes:
        name: of what they are.
        over: what there are rows for: a field of `Workload`.
        numbers: in a row, over all such tensors.
        block: which block they belong to; None outside all.
    """

    name: str
    over: str
    numbers: int
    block: int | None = None

    def total(self, counts: Mapping[str, int]) -> int:
        """Numbers over all rows."""
        return counts[self.over] * self.numbers
