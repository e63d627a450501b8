"""The just-in-time planner: which rank computes which rows by which experts, decided before a tensor moves.

Element-type routing makes the rows of every expert known on the host as soon as a batch is: no counts are exchanged,
nothing is estimated, nothing is dropped. The planner is pure and works on integers, so every rank comes to the same
plan by itself.

Experts are stored in slices: each rank of a unit keeps some hidden units of every expert. To compute an expert, a rank
*restores* it, which takes the slices of all others; it computes rows of its own, and rows that others send it, which go
back as results.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from janus_moe import planner_loops
from janus_moe.cost import STEP_ROW_TRIPS, CostModel
from janus_moe.selection import ELEMENTS, periodic_table_order

# Percentages of what restoring an element's experts costs: rows whose moving would cost more stay where they are.
_SHARES = (400, 100, 30)


def slice_sizes(hidden: int, ranks: int) -> list[int]:
    """Hidden units of each expert that each rank keeps: equal slices, of which the last may be shorter or empty."""
    step = -(-hidden // ranks)
    return [max(0, min(step, hidden - rank * step)) for rank in range(ranks)]


@dataclass(frozen=True, eq=False)
class Load:
    """What each rank does in each layer.

    Attributes:
        pairs: rows times experts that it computes.
        sent: rows that it sends to be computed elsewhere, once for each rank they go to.
        received: rows that it computes for others.
        restored: experts that it restores.
    """

    pairs: Int[np.ndarray, "layers ranks"]
    sent: Int[np.ndarray, "layers ranks"]
    received: Int[np.ndarray, "layers ranks"]
    restored: Int[np.ndarray, "layers ranks"]


@dataclass(frozen=True, eq=False)
class ExpertPlan:
    """The rows and experts of a step, and who computes them.

    Attributes:
        elements: atomic numbers that have rows anywhere, ascending.
        rows: of each of these elements on each rank in each layer.
        selection: experts of each of these elements in each layer.
        experts: in each layer.
        hidden: hidden units of each expert.
        computes: the rank that computes rank r's rows of element z by the k-th of its experts.
    """

    elements: tuple[int, ...]
    rows: Int[np.ndarray, "layers ranks present"]
    selection: Int[np.ndarray, "layers present top_k"]
    experts: int
    hidden: int
    computes: Int[np.ndarray, "layers ranks present top_k"]

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.rows.shape[0]

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.rows.shape[1]

    @cached_property
    def slices(self) -> NDArray[np.int64]:
        """Hidden units of each expert that each rank stores."""
        return np.array(slice_sizes(self.hidden, self.ranks), dtype=np.int64)

    @cached_property
    def load(self) -> Load:
        """What each rank does in each layer."""
        found = np.zeros((4, self.layers, self.ranks), dtype=np.int64)
        for layer in range(self.layers):
            found[:, layer] = planner_loops.load(*self._as_looped(layer), self.experts)
        return Load(*found)

    def bytes_sent(self, width: int, bytes_per_number: int = 4) -> dict[str, Int[np.ndarray, "layers ranks"]]:
        """Bytes that each rank sends to others in each layer and training step by double backward: of rows and their
        results, of restored weights, and of gradients of restored weights.

        Args:
            width: features of a row.
            bytes_per_number: of features and weights.
        """
        row, restored = width * bytes_per_number, self.load.restored
        others = restored.sum(1, keepdims=True) - restored
        return {
            # Each pass that moves rows one way moves results, or cotangents of either, the other way.
            "rows": STEP_ROW_TRIPS // 2 * row * (self.load.sent + self.load.received),
            "weights": 3 * row * others * self.slices,
            "gradients": 3 * row * restored * (self.hidden - self.slices),
        }

    def times(self, cost: CostModel) -> Int[np.ndarray, "layers ranks"]:
        """Modelled picoseconds of each rank in each layer."""
        found = np.zeros((self.layers, self.ranks), dtype=np.int64)
        for layer in range(self.layers):
            found[layer] = planner_loops.layer_times(*self._as_looped(layer), self.experts, self.slices, _costs(cost))
        return found

    def _as_looped(self, layer: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Rows, selection and ranks with the ranks of one element next to each other, as loops go."""
        computes = np.ascontiguousarray(self.computes[layer].transpose(1, 2, 0))
        return np.ascontiguousarray(self.rows[layer].T), self.selection[layer], computes


def weights_move(
    rows: Int[np.ndarray, "layers ranks elements"],
    selection: Int[np.ndarray, "layers elements top_k"],
    experts: int,
    hidden: int,
) -> ExpertPlan:
    """The plan in which no row moves: every rank restores all experts that its rows need.

    Args and errors are those of `plan_experts`.
    """
    elements, rows, selection = _present(rows, selection, experts)
    shape = (*rows.shape, selection.shape[2])
    own = np.broadcast_to(np.arange(rows.shape[1])[:, None, None], shape)
    return ExpertPlan(elements, rows, selection, experts, hidden, own.copy())


def rows_move(
    rows: Int[np.ndarray, "layers ranks elements"],
    selection: Int[np.ndarray, "layers elements top_k"],
    experts: int,
    hidden: int,
) -> ExpertPlan:
    """Plain expert parallelism: every expert has a fixed home, equally many on each rank, and all its rows go there.

    Args and errors are those of `plan_experts`.
    """
    plan = weights_move(rows, selection, experts, hidden)
    plan.computes[:] = plan.selection[:, None] * plan.ranks // experts
    return plan


def plan_experts(
    rows: Int[np.ndarray, "layers ranks elements"],
    selection: Int[np.ndarray, "layers elements top_k"],
    experts: int,
    hidden: int,
    cost: CostModel,
) -> ExpertPlan:
    """The plan of all layers of a step: for each, the cheapest that is found for its slowest rank.

    Weights go to rows, rows to weights, or both, and an expert that many rows need is restored on several ranks. Rows
    whose moving would cost more than their experts stay where they are, at most a rank's share of the work. The experts
    of all other rows stand in line, those of one element next to each other, and the line is cut into what each rank
    can still do. Several thresholds are tried, and all weights moving, experts at fixed homes, and experts placed by
    longest processing time; so no plan costs more than any of these.

    Args:
        rows: of each atomic number on each rank in each layer, [layers, ranks, 119].
        selection: experts of each atomic number in each layer, [layers, 119, top_k].
        experts: in each layer.
        hidden: hidden units of each expert, of which every rank stores a slice.
        cost: what moving and computing cost.

    Raises:
        ValueError: tables that do not fit together, negative rows, or experts that do not exist or repeat.
    """
    plan = weights_move(rows, selection, experts, hidden)
    if plan.ranks == 1 or not plan.elements:
        return plan
    in_order = {z: place for place, z in enumerate(periodic_table_order())}
    line = np.argsort([in_order[z] for z in plan.elements], kind="stable")
    shares, costs = np.array(_SHARES, dtype=np.int64), _costs(cost)
    # Layers of one kind have the same rows, and the same experts until their routers part.
    alike: dict[tuple[bytes, bytes], NDArray[np.int64]] = {}
    for layer in range(plan.layers):
        own_rows, own_selection = np.ascontiguousarray(plan.rows[layer].T), plan.selection[layer]
        key = own_rows.tobytes(), own_selection.tobytes()
        if key not in alike:
            found = planner_loops.plan_layer(own_rows, own_selection, line, experts, plan.slices, costs, shares)
            alike[key] = found.transpose(2, 0, 1)
        plan.computes[layer] = alike[key]
    return plan


def _present(
    rows: Int[np.ndarray, "layers ranks elements"], selection: Int[np.ndarray, "layers elements top_k"], experts: int
) -> tuple[tuple[int, ...], NDArray[np.int64], NDArray[np.int64]]:
    """Elements that have rows, and their columns of both tables."""
    rows, selection = np.asarray(rows, dtype=np.int64), np.asarray(selection, dtype=np.int64)
    if rows.ndim != 3 or selection.ndim != 3 or rows.shape[2] != ELEMENTS or selection.shape[1] != ELEMENTS:
        raise ValueError(
            f"rows must be [layers, ranks, {ELEMENTS}] and selection [layers, {ELEMENTS}, top_k], "
            f"got {list(rows.shape)} and {list(selection.shape)}"
        )
    if rows.shape[0] != selection.shape[0] or rows.shape[1] < 1:
        raise ValueError(
            f"rows are for {rows.shape[0]} layers and {rows.shape[1]} ranks, selection is for {selection.shape[0]} "
            "layers; give both for the same layers and at least one rank"
        )
    if rows.min(initial=0) < 0 or rows[:, :, 0].any():
        raise ValueError("rows cannot be negative, and no element has atomic number 0")
    elements = np.flatnonzero(rows.any(axis=(0, 1)))
    chosen = selection[:, elements]
    if chosen.size and (chosen.min() < 0 or chosen.max() >= experts):
        raise ValueError(f"selection names experts outside 0..{experts - 1}")
    ordered = np.sort(chosen, axis=2)
    if (ordered[..., 1:] == ordered[..., :-1]).any():
        raise ValueError("an element selects an expert twice; each of its experts must be another")
    return tuple(elements.tolist()), np.ascontiguousarray(rows[:, :, elements]), np.ascontiguousarray(chosen)


def _costs(cost: CostModel) -> tuple[int, int, int, int]:
    return cost.pair, cost.row, cost.unit, cost.exchange


class ExpertPlanner:
    """Plans, and remembers those of compositions it has seen: along a trajectory, or from epoch to epoch.

    Args:
        experts: in each layer.
        hidden: hidden units of each expert.
        cost: what moving and computing cost.
        remembered: how many plans are kept; the least recently used goes first.
    """

    def __init__(self, experts: int, hidden: int, cost: CostModel, remembered: int = 64) -> None:
        self.experts, self.hidden, self.cost, self.remembered = experts, hidden, cost, remembered
        self._plans: OrderedDict[bytes, ExpertPlan] = OrderedDict()

    def plan(
        self, rows: Int[np.ndarray, "layers ranks elements"], selection: Int[np.ndarray, "layers elements top_k"]
    ) -> ExpertPlan:
        """`plan_experts` of these rows and experts, or what it gave before.

        Raises:
            ValueError: as `plan_experts`.
        """
        digest = hashlib.blake2b(repr((np.shape(rows), np.shape(selection))).encode())
        for table in (rows, selection):
            digest.update(np.asarray(table, dtype=np.int64).tobytes())
        key = digest.digest()
        if key not in self._plans:
            self._plans[key] = plan_experts(rows, selection, self.experts, self.hidden, self.cost)
        self._plans.move_to_end(key)
        while len(self._plans) > self.remembered:
            self._plans.popitem(last=False)
        return self._plans[key]
