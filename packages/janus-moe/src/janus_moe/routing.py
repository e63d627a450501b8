"""Which experts an element owns, and with what weights it mixes them.

Selection depends on the atomic number alone, so the active experts never change along a trajectory and the energy
surface stays smooth; and the load of every expert is a sum of integers that the host knows before the step.
"""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

ELEMENTS = 119
"""Rows of every element table: atomic numbers 1 to 118, and an unused row 0."""

_NOBLE_GASES = (0, 2, 10, 18, 36, 54, 86, 118)


def periodic_table_order() -> list[int]:
    """Atomic numbers 1 to 118, down each column of the periodic table and then on to the next column.

    Elements of one group stand next to each other (F, Cl, Br, I), then comes the group to the right. The f-elements
    stand between groups 3 and 4.
    """

    def place(z: int) -> tuple[float, int]:
        period = next(n for n, noble in enumerate(_NOBLE_GASES) if z <= noble)
        position, length = z - _NOBLE_GASES[period - 1], _NOBLE_GASES[period] - _NOBLE_GASES[period - 1]
        if position <= 2 and not (period == 1 and position == 2):
            return float(position), period
        if length == 32 and position <= 16:
            return 3 + (position - 3) / 14, period
        return float(position + 18 - length), period

    return sorted(range(1, ELEMENTS), key=place)


def initial_selection(experts: int, top_k: int) -> Int64[Tensor, "elements top_k"]:
    """Each element's experts at the start: windows over a ring of experts that move on by half of themselves.

    Walking through the periodic table column by column, an element shares about half of its experts with the one
    before, and every expert serves about as many elements as any other.

    Raises:
        ValueError: no expert, or more experts per element than there are.
    """
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k is {top_k} of {experts} experts; it must be between 1 and the number of experts")
    selection = torch.zeros(ELEMENTS, top_k, dtype=torch.int64)
    window = torch.arange(top_k)
    for place, z in enumerate(periodic_table_order()):
        # Every second window begins where the one before last ended, so both halves of them tile the ring evenly.
        selection[z] = (place * top_k // 2 + window) % experts
    return selection


class Router(Protocol):
    """The experts of elements, and their weights in the mix."""

    def __call__(
        self, elements: Int64[Tensor, "present"]
    ) -> tuple[Int64[Tensor, "present top_k"], Float[Tensor, "present top_k"]]:
        """The experts of each element and their weights, which sum to one."""
        ...


class ElementRouter(nn.Module):
    """A learnable table [elements, experts] whose softmax over an element's own experts gives their weights.

    Attributes:
        logits: the table.
        selection: experts of each element, [elements, top_k]; part of the state, not learned.
    """

    selection: Tensor

    def __init__(self, experts: int, top_k: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(ELEMENTS, experts))
        self.register_buffer("selection", initial_selection(experts, top_k))

    def forward(
        self, elements: Int64[Tensor, "present"]
    ) -> tuple[Int64[Tensor, "present top_k"], Float[Tensor, "present top_k"]]:
        """The experts of each element and their weights, which sum to one."""
        selected = self.selection.index_select(0, elements)
        logits = self.logits.index_select(0, elements).gather(1, selected)
        return selected, torch.softmax(logits, dim=1)

    @torch.no_grad()
    def expert_map(self) -> Float[Tensor, "elements experts"]:
        """Weight of every expert for every element, zero where an element does not use the expert."""
        selected, gates = self(torch.arange(ELEMENTS, device=self.logits.device))
        return torch.zeros_like(self.logits).scatter(1, selected, gates)


def expert_load(
    selection: Int64[Tensor, "elements top_k"], rows_per_element: Int64[Tensor, "elements"], experts: int
) -> Int64[Tensor, "experts"]:
    """How many rows every expert computes, given how many rows every element has."""
    rows = rows_per_element[:, None].expand_as(selection)
    return torch.zeros(experts, dtype=torch.int64).index_add(0, selection.flatten(), rows.flatten())
