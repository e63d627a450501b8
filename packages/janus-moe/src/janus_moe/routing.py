"""Which experts an element owns, and with what weights it mixes them.

Selection depends on the atomic number alone, so the active experts never change along a trajectory and the energy
surface stays smooth; and the load of every expert is a sum of integers that the host knows before the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from janus_moe.selection import ELEMENTS, initial_selection

MARGIN = 0.01
"""By how much the table's logits of the experts of the initial selection start above those of all others.

Small beside what some hundred steps move a logit (about 0.03), so that an expert that noise brings in can overtake.
"""


class Router(Protocol):
    """The experts of elements, and their weights in the mix."""

    def __call__(
        self, elements: Int64[Tensor, "present"]
    ) -> tuple[Int64[Tensor, "present top_k"], Float[Tensor, "present top_k"]]:
        """The experts of each element and their weights, which sum to one."""
        ...


class ElementRouter(nn.Module):
    """A learnable table [elements, experts] whose softmax over an element's own experts gives their weights.

    It starts from `initial_selection(experts, top_k)`, for elements that are all alike frequent; `start_from` begins
    with another one. Which experts an element owns stays as it is unless `explore` is called: then they are those that
    the table and some noise put on top, until `freeze` settles them for good. The weights are learned all the while.

    Attributes:
        logits: the table.
        selection: experts of each element, [elements, top_k], ascending; part of the state, not learned.
        frozen_at: step at which the selection was frozen, −1 before; part of the state.
    """

    selection: Tensor
    frozen_at: Tensor

    def __init__(self, experts: int, top_k: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.empty(ELEMENTS, experts))
        self.register_buffer("selection", torch.empty(ELEMENTS, top_k, dtype=torch.int64))
        self.register_buffer("frozen_at", torch.empty((), dtype=torch.int64))
        self.start_from(initial_selection(experts, top_k))

    @torch.no_grad()
    def start_from(self, selection: Int64[Tensor, "elements top_k"]) -> None:
        """Begins anew with these experts for each element, in equal parts.

        Raises:
            ValueError: another number of elements or of experts an element.
        """
        if selection.shape != self.selection.shape:
            raise ValueError(
                f"a selection of shape {tuple(selection.shape)} for a router of {tuple(self.selection.shape)}; "
                "make it with initial_selection for the same numbers of experts"
            )
        self.selection.copy_(selection)
        self.logits.zero_().scatter_(1, self.selection, MARGIN)
        self.frozen_at.fill_(-1)

    @torch.no_grad()
    def explore(self, noise: Float[Tensor, "elements experts"]) -> None:
        """Selects for each element the experts that its logits and this noise put on top.

        Before a step, with the same noise on every rank (`selection_noise`): the selection holds for the whole step.

        Raises:
            RuntimeError: the selection is frozen.
        """
        self._check_open()
        self.selection.copy_(self._top(self.logits + noise.to(self.logits)))

    @torch.no_grad()
    def freeze(self, step: int) -> None:
        """Selects for each element the experts that its logits put on top, for good from this step on.

        Raises:
            RuntimeError: the selection is frozen already.
        """
        self._check_open()
        self.selection.copy_(self._top(self.logits))
        self.frozen_at.fill_(step)

    @torch.no_grad()
    def stand_in(self, elements: Mapping[int, int]) -> None:
        """Lets elements use the experts and gates of others: `{43: 25}` routes technetium as manganese.

        Meant for elements that the training did not see; frozen or not, what they had is overwritten.

        Raises:
            ValueError: numbers that are no elements.
        """
        for z, other in elements.items():
            if not (0 < z < ELEMENTS and 0 < other < ELEMENTS):
                raise ValueError(f"{z} cannot be routed as {other}; atomic numbers are 1 to {ELEMENTS - 1}")
        to, of = (torch.tensor(list(z), dtype=torch.int64, device=self.logits.device)
                  for z in (elements.keys(), elements.values()))  # fmt: skip
        self.selection[to] = self.selection[of]
        self.logits[to] = self.logits[of]

    def _check_open(self) -> None:
        if int(self.frozen_at) >= 0:
            raise RuntimeError(
                f"the experts of elements were frozen at step {int(self.frozen_at)} and do not change any more; "
                "start_from begins anew"
            )

    def _top(self, table: Tensor) -> Tensor:
        # Stable: of equal experts the first, on every device. Ascending: sums are taken in the same order again.
        first = torch.sort(table, dim=1, descending=True, stable=True).indices[:, : self.selection.shape[1]]
        return first.sort(dim=1).values

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
