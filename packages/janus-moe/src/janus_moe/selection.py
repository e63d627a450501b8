"""Which experts an element owns at the start: an even load, and neighbours in the periodic table that share."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

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


def initial_selection(
    experts: int, top_k: int, frequencies: Int64[Tensor, "elements"] | None = None
) -> Int64[Tensor, "elements top_k"]:
    """Each element's experts at the start, ascending: an even load where neighbours share half their experts.

    Walking through the periodic table column by column, an element takes over half of its experts from the one before
    and hands the other half on to the next. Which experts a half consists of is chosen so that all of them compute
    about as many rows: the heaviest halves go first to the experts with the fewest rows, then single places move from
    busy to idle experts while that evens the load. Deterministic, in integers.

    Args:
        experts: number of experts.
        top_k: experts of each element.
        frequencies: rows of each element (row 0 does not count), such as the atoms of a training set; all elements
            alike where it is not given. Elements without rows get experts too, and count as nothing.

    Raises:
        ValueError: no expert, more experts per element than there are, or frequencies that are none.
    """
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k is {top_k} of {experts} experts; it must be between 1 and the number of experts")
    order = periodic_table_order()
    halves = _Halves(experts, top_k, _rows_in_order(frequencies, order))
    halves.deal()
    halves.even_out()
    selection = [[0] * top_k for _ in range(ELEMENTS)]
    for place, z in enumerate(order):
        selection[z] = sorted(halves.owners[place] | halves.owners[place + 1])
    return torch.tensor(selection, dtype=torch.int64)


def _rows_in_order(frequencies: Tensor | None, order: list[int]) -> list[int]:
    if frequencies is None:
        return [1] * len(order)
    if frequencies.shape != (ELEMENTS,) or frequencies.dtype.is_floating_point or bool((frequencies < 0).any()):
        raise ValueError(
            f"frequencies are {frequencies.dtype} of shape {tuple(frequencies.shape)}; give one count of rows for each "
            f"atomic number from 0 to {ELEMENTS - 1}, as integers that are not negative"
        )
    rows: list[int] = frequencies.tolist()
    return [rows[z] for z in order]


class _Halves:
    """Half-windows of experts while they are filled: element t of the order owns halves t and t + 1.

    Half t has ⌊(t+1)K/2⌋ − ⌊tK/2⌋ experts, so two consecutive ones have K, and computes the rows of elements t − 1 and
    t. Consecutive halves share no expert; nor do those at a distance of two, where there are enough experts, or else
    elements would share more than half.

    Attributes:
        owners: experts of each half.
        load: rows of each expert.
        served: halves of each expert, which decides between experts of equal load.
    """

    def __init__(self, experts: int, top_k: int, rows: list[int]) -> None:
        count = len(rows) + 1
        self.sizes = [(t + 1) * top_k // 2 - t * top_k // 2 for t in range(count)]
        self.rows = [(rows[t - 1] if t else 0) + (rows[t] if t < len(rows) else 0) for t in range(count)]
        self.owners: list[set[int]] = [set() for _ in range(count)]
        self.load = [0] * experts
        self.served = [0] * experts
        largest = (top_k + 1) // 2
        self.reach = 2 if experts >= top_k + largest else 1
        # With so many experts a half finds room whatever its neighbours own; with fewer it does in sequence only.
        self.any_order = experts >= 2 * top_k + largest

    def neighbours(self, half: int) -> set[int]:
        """Experts that a half may not own, because halves next to it do."""
        return set().union(*self.owners[max(half - self.reach, 0) : half], *self.owners[half + 1 :][: self.reach])

    def deal(self) -> None:
        """Gives every half the experts with the fewest rows among those it may own."""
        halves: list[int] = list(range(len(self.sizes)))
        if self.any_order:
            halves.sort(key=lambda half: -self.rows[half])
        for half in halves:
            taken = self.neighbours(half)
            free = [expert for expert in range(len(self.load)) if expert not in taken]
            free.sort(key=lambda expert: (self.load[expert], self.served[expert]))
            for expert in free[: self.sizes[half]]:
                self._give(half, expert)

    def even_out(self) -> None:
        """Moves places to less busy experts until no move from the busiest or to the idlest one evens the load."""
        while self._move():
            pass

    def _move(self) -> bool:
        by_load = sorted(range(len(self.load)), key=lambda expert: (self.load[expert], self.served[expert]))
        idlest, busiest = by_load[0], by_load[-1]
        pairs = [(busiest, idle) for idle in by_load[:-1]] + [(busy, idlest) for busy in by_load[-2:0:-1]]
        return any(self._relieve(busy, idle) for busy, idle in pairs)

    def _relieve(self, busy: int, idle: int) -> bool:
        """Moves one half from a busy to an idle expert if both then lie between what they were."""
        gap = self.load[busy] - self.load[idle]
        for half, rows in enumerate(self.rows):
            evens = 0 < rows < gap or (gap == rows == 0 and self.served[busy] - self.served[idle] > 1)
            if evens and busy in self.owners[half] and idle not in self.owners[half] | self.neighbours(half):
                self._take(half, busy)
                self._give(half, idle)
                return True
        return False

    def _give(self, half: int, expert: int) -> None:
        self.owners[half].add(expert)
        self.load[expert] += self.rows[half]
        self.served[expert] += 1

    def _take(self, half: int, expert: int) -> None:
        self.owners[half].remove(expert)
        self.load[expert] -= self.rows[half]
        self.served[expert] -= 1
