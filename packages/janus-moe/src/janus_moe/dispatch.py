"""What one rank does in one layer, from the plan of all: which slices and rows it sends, and what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from janus_moe.groups import ElementGroups
from janus_moe.planner import ExpertPlan

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class WideGroups:
    """Groups of rows that this rank computes by equally many experts each: one grouped product for all of them.

    Attributes:
        rows: places of the rows among own rows followed by received ones, group by group; None where all stand so.
        groups: element and number of rows of each group. An element has several where ranks ask for other experts.
        slots: which of its element's experts each group is computed by.
        units: places of their hidden units among the restored ones, [groups · slots · hidden].
    """

    rows: Int64[Tensor, "rows"] | None
    groups: ElementGroups
    slots: Int64[Tensor, "groups slots"]
    units: Int64[Tensor, "units"]


@dataclass(frozen=True, eq=False)
class Dispatch:
    """One rank's part of a plan in one layer.

    Attributes:
        counts: rows of each element that has some on this rank.
        slices: experts whose slices this rank sends, those for rank 0 first, its own among them.
        shared: places of these and the experts they are of; an expert that n ranks restore is in the first n.
        slice_counts: hidden units that it sends to and receives from each rank.
        moves: whether any rank's rows go anywhere.
        sent: own rows that are computed elsewhere, those for rank 0 first.
        row_counts: rows that it sends to and receives from each rank.
        wide: what it computes.
        results: places of the received rows' results among all results; they go back.
        kept: places of own rows' results among all results, None where that is all of them in order.
        kept_rows: the own rows that these belong to.
        returned: places of results that come back, and the own rows that they belong to; a row that went to n ranks
            has its results in the first n of these, so that no addition depends on the order of threads.
    """

    counts: tuple[int, ...]
    slices: Int64[Tensor, "slices"]
    shared: tuple[tuple[Int64[Tensor, "some"], Int64[Tensor, "some"]], ...]
    slice_counts: tuple[tuple[int, ...], tuple[int, ...]]
    moves: bool
    sent: Int64[Tensor, "sent"]
    row_counts: tuple[tuple[int, ...], tuple[int, ...]]
    wide: tuple[WideGroups, ...]
    results: Int64[Tensor, "received"]
    kept: Int64[Tensor, "kept"] | None
    kept_rows: Int64[Tensor, "kept"]
    returned: tuple[tuple[Int64[Tensor, "some"], Int64[Tensor, "some"]], ...]


def dispatch_layers(plan: ExpertPlan, rank: int, device: torch.device | str = "cpu") -> tuple[Dispatch, ...]:
    """What rank `rank` does in every layer of a plan; layers that are planned alike share it."""
    known: dict[tuple[bytes, ...], Dispatch] = {}
    parts = []
    for layer in range(plan.layers):
        key = tuple(table[layer].tobytes() for table in (plan.rows, plan.selection, plan.computes))
        if key not in known:
            known[key] = dispatch(plan, layer, rank, device)
        parts.append(known[key])
    return tuple(parts)


def dispatch(plan: ExpertPlan, layer: int, rank: int, device: torch.device | str = "cpu") -> Dispatch:
    """What rank `rank` does in layer `layer` of a plan, its index tensors on `device`."""
    rows, computes, ranks = plan.rows[layer], plan.computes[layer], plan.ranks
    # Whether any of an element's experts is computed by a rank for this one, and by this one for a rank.
    by = (computes[rank][:, :, None] == np.arange(ranks)).any(1) & (rows[rank] > 0)[:, None]
    serves = (computes == rank).any(2) & (rows > 0)
    experts = _restored(plan, layer)
    wide, order = _wide_groups(plan, layer, _segments(plan, layer, rank, serves), experts[rank])

    sent = _sent(rows[rank], by, rank)
    out, back = rows[rank] @ by, (rows * serves).sum(1)
    out[rank] = back[rank] = 0
    own = int(rows[rank].sum())
    there = own + int(back.sum())
    if len(wide) == 1 and len(order) == there and _counts_up(order):
        wide = [replace(wide[0], rows=None)]
    result = np.full(there, -1, dtype=np.int64)
    result[order] = np.arange(len(order))
    kept_rows = np.flatnonzero(result[:own] >= 0)
    kept = result[kept_rows]
    slices = np.concatenate(experts)

    def tensor(values: Integers) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(device)

    return Dispatch(
        counts=tuple(rows[rank][rows[rank] > 0].tolist()),
        slices=tensor(slices),
        shared=tuple((tensor(places), tensor(slices[places])) for places in _by_occurrence(slices)),
        slice_counts=(
            tuple(len(some) * int(plan.slices[rank]) for some in experts),
            tuple(len(experts[rank]) * int(size) for size in plan.slices),
        ),
        moves=bool(((computes != np.arange(ranks)[:, None, None]) & (rows > 0)[:, :, None]).any()),
        sent=tensor(sent),
        row_counts=(tuple(out.tolist()), tuple(back.tolist())),
        wide=tuple(_on(group, device) for group in wide),
        results=tensor(result[own:]),
        kept=None if _counts_up(kept) and len(kept) == len(order) == own else tensor(kept),
        kept_rows=tensor(kept_rows),
        returned=tuple((tensor(places), tensor(sent[places])) for places in _by_occurrence(sent)),
    )


@dataclass(frozen=True)
class _Segment:
    """Consecutive rows of one element, and which of its experts compute them here."""

    element: int
    slots: tuple[int, ...]
    first: int
    count: int


def _restored(plan: ExpertPlan, layer: int) -> list[Integers]:
    """Experts that each rank computes, ascending."""
    rank, element = np.nonzero(plan.rows[layer])
    used = np.zeros((plan.ranks, plan.experts), dtype=bool)
    used[plan.computes[layer][rank, element], plan.selection[layer][element]] = True
    return [np.flatnonzero(of_rank) for of_rank in used]


def _segments(plan: ExpertPlan, layer: int, rank: int, serves: NDArray[np.bool_]) -> list[_Segment]:
    """What a rank computes of its own rows, and then of those that each other rank sends it, by element."""
    rows, segments, first = plan.rows[layer], [], 0
    for source in (rank, *(other for other in range(plan.ranks) if other != rank)):
        for element in np.flatnonzero(rows[source] if source == rank else serves[source]).tolist():
            slots = tuple(np.flatnonzero(plan.computes[layer][source, element] == rank).tolist())
            count = int(rows[source, element])
            if slots:
                segments.append(_Segment(element, slots, first, count))
            first += count
    return segments


def _wide_groups(
    plan: ExpertPlan, layer: int, segments: list[_Segment], experts: Integers
) -> tuple[list[WideGroups], Integers]:
    """Segments gathered into groups of one element and the same experts, those of as many experts together; and the
    rows in the order in which they are computed."""
    alike: dict[tuple[int, int, tuple[int, ...]], list[_Segment]] = {}
    for segment in segments:
        alike.setdefault((len(segment.slots), segment.element, segment.slots), []).append(segment)
    place = np.zeros(plan.experts, dtype=np.int64)
    place[experts] = np.arange(len(experts))
    units = _unit_places(len(experts), plan.slices)
    wide, order = [], []
    for size in sorted({key[0] for key in alike}):
        keys = sorted(key for key in alike if key[0] == size)
        places = [np.arange(part.first, part.first + part.count) for key in keys for part in alike[key]]
        rows = np.concatenate(places)
        counts = [sum(part.count for part in alike[key]) for key in keys]
        slots = np.array([key[2] for key in keys], dtype=np.int64)
        chosen = plan.selection[layer][np.array([key[1] for key in keys])[:, None], slots]
        elements = tuple(plan.elements[key[1]] for key in keys)
        groups = ElementGroups(
            atomic_numbers=elements,
            elements=torch.tensor(elements),
            ends=torch.tensor(np.cumsum(counts), dtype=torch.int32),
            counts=tuple(counts),
        )
        order.append(rows)
        wide.append(
            WideGroups(
                torch.from_numpy(rows),
                groups,
                torch.from_numpy(slots),
                torch.from_numpy(units[place[chosen]].reshape(-1)),
            )
        )
    return wide, np.concatenate([*order, np.empty(0, np.int64)])


def _unit_places(restored: int, slices: Integers) -> Integers:
    """Where the hidden units of each restored expert are, [restored, hidden]: every rank sends its slices of all."""
    blocks, first = [], 0
    for size in slices.tolist():
        blocks.append(first + np.arange(restored * size).reshape(restored, size))
        first += restored * size
    return np.concatenate(blocks, axis=1)


def _sent(rows: Integers, by: NDArray[np.bool_], rank: int) -> Integers:
    """Own rows that other ranks compute, by rank and element."""
    first = np.cumsum(rows) - rows
    parts = [
        np.arange(first[element], first[element] + rows[element])
        for other in range(by.shape[1])
        if other != rank
        for element in np.flatnonzero(by[:, other])
    ]
    return np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64)


def _by_occurrence(rows: Integers) -> Iterator[Integers]:
    """Places of every row's first occurrence, then of every second one, and so on."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=-1))
    occurrence = np.arange(len(rows)) - np.repeat(begins, np.diff(begins, append=len(rows)))
    for which in range(int(occurrence.max(initial=-1)) + 1):
        yield np.sort(order[occurrence == which])


def _counts_up(places: Integers) -> bool:
    return bool((places == np.arange(len(places))).all())


def _on(wide: WideGroups, device: torch.device | str) -> WideGroups:
    groups = replace(wide.groups, elements=wide.groups.elements.to(device), ends=wide.groups.ends.to(device))
    rows = None if wide.rows is None else wide.rows.to(device)
    return WideGroups(rows, groups, wide.slots.to(device), wide.units.to(device))
