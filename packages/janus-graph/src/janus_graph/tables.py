"""Dense tables of the edges of each atom, so that sums and products over neighbours are batched matrix products.

Atoms have different numbers of edges. A handful of tables of different widths, each for the atoms whose edges fit it
best, keeps the padding small and the number of products too. Which ones is a small problem that is solved exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor
from torch.autograd import Function

# Widths are multiples of this: what the vector units of processors like.
_WIDTH_STEP = 4


@dataclass(frozen=True)
class TableCosts:
    """What widths of tables are chosen by.

    Attributes:
        power: 1 where the work goes with edges, 2 where it goes with pairs of them.
        table: how many places, or pairs of them, cost as much as one more table: some hundred small operations in a
            step, whose start takes as long as the work on these.
    """

    power: int
    table: int


EDGE_TABLES = TableCosts(power=1, table=2000)
"""For sums over all edges of an atom."""
NEAR_TABLES = TableCosts(power=2, table=4000)
"""For sums over pairs of its near edges."""


@dataclass(frozen=True, eq=False)
class EdgeTables:
    """Chosen edges of each atom as rows of dense tables: a plan, and the two moves that follow it.

    Attributes:
        edges: indices of the edges that are in a table, ascending.
        shapes: atoms and width of each table.
        slots: for each of `edges` its place in the flattened tables, one after the other.
        sources: for each place which of `edges` stands there; one past the last for padding.
        starts: where each atom's part of `edges` starts, and the end of the last one.
        atoms: the atom that owns each row, over all tables.
        rows: for each atom its row over all tables; one past the last row for atoms that are in none.
        pairs: number of ordered pairs (p, q), p ≠ q, of edges that share their atom.
    """

    edges: Int32[Tensor, "chosen"]
    shapes: tuple[tuple[int, int], ...]
    slots: Int32[Tensor, "chosen"]
    sources: Int32[Tensor, "places"]
    starts: Int32[Tensor, "all_atoms+1"]
    atoms: Int64[Tensor, "table_rows"]
    rows: Int64[Tensor, "all_atoms"]
    pairs: int

    def to(self, device: torch.device | str) -> EdgeTables:
        """The same tables on another device."""
        names = ("edges", "slots", "sources", "starts", "atoms", "rows")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def spread(self, rows: Float[Tensor, "chosen *features"]) -> tuple[Float[Tensor, "atoms width *features"], ...]:
        """Rows of the chosen edges laid out as tables, zeros where there is no edge."""
        parts = self._move(rows, spread=True).split([atoms * width for atoms, width in self.shapes])
        return tuple(part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True))

    def collect(self, tables: Sequence[Float[Tensor, "atoms width *features"]]) -> Float[Tensor, "chosen *features"]:
        """The rows of the chosen edges out of tables: what `spread` undoes, and its adjoint.

        Raises:
            ValueError: no tables, where there is nothing to say how many features a row has.
        """
        if not tables:
            raise ValueError("no atom has edges in these tables, so there is nothing to collect")
        return self._move(torch.cat([table.flatten(0, 1) for table in tables]), spread=False)

    def _move(self, rows: Tensor, spread: bool) -> Tensor:
        if torch.compiler.is_compiling():  # a compiler cannot look into the function below
            return _moved(rows, self.slots, self.sources, spread)
        moved: Tensor = _Move.apply(rows, self.slots, self.sources, spread)  # type: ignore[no-untyped-call]
        return moved


class _Move(Function):
    """Rows to their slots, or out of them. Each is the adjoint of the other, as every slot holds one row at most: no
    derivative of any order adds rows up, as that of plain `index_select` would.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, slots: Tensor, sources: Tensor, spread: bool) -> Tensor:
        return _moved(rows, slots, sources, spread)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
        _, ctx.slots, ctx.sources, ctx.spread = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        back: Tensor = _Move.apply(gradient, ctx.slots, ctx.sources, not ctx.spread)  # type: ignore[no-untyped-call]
        return back, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        moved: Tensor = _Move.apply(tangent, ctx.slots, ctx.sources, ctx.spread)  # type: ignore[no-untyped-call]
        return moved


def _moved(rows: Tensor, slots: Tensor, sources: Tensor, spread: bool) -> Tensor:
    if not spread:
        return rows.index_select(0, slots)
    # One row of zeros for padding to point at; copying rows to their slots instead took 1.7 times as long on a CPU.
    return torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])]).index_select(0, sources)


def edge_tables(centre: Int64[np.ndarray, "edges"], atoms: int) -> EdgeTables:
    """Dense tables of all edges of each atom, for sums over neighbours.

    Args:
        centre: centre of every edge, ascending.
        atoms: number of atoms.
    """
    count = np.diff(np.searchsorted(centre, np.arange(atoms + 1)))
    return _tables(np.arange(len(centre)), count, EDGE_TABLES)


def near_tables(centre: Int64[np.ndarray, "edges"], near: Bool[np.ndarray, "edges"], atoms: int) -> EdgeTables:
    """Dense tables of the near edges of each atom that has two or more, for sums over pairs of them.

    Args:
        centre: centre of every edge, ascending.
        near: which edges are near.
        atoms: number of atoms.
    """
    edges = np.flatnonzero(near)
    owner = centre[edges]
    count = np.bincount(owner, minlength=atoms)
    if (count == 1).any():
        edges, count = edges[count[owner] > 1], np.where(count > 1, count, 0)
    return _tables(edges, count, NEAR_TABLES)


def _tables(edges: Int64[np.ndarray, "chosen"], count: Int64[np.ndarray, "atoms"], costs: TableCosts) -> EdgeTables:
    """Tables of chosen edges whose widths make Σ width^power over their rows, and what tables cost, smallest.

    Args:
        edges: which edges are in the tables, by ascending centre.
        count: how many of them each atom has.
        costs: what the widths are chosen by.
    """
    atoms = len(count)
    widths = table_widths(count[count > 0], costs)
    table_of_atom = np.where(count > 0, np.searchsorted(widths, count), -1)
    slot_of_atom, row_of_atom = np.zeros(atoms, dtype=np.int64), np.empty(atoms, dtype=np.int64)
    owners, shapes, start, row = [], [], 0, 0
    for place, width in enumerate(widths.tolist()):
        members = np.flatnonzero(table_of_atom == place)
        slot_of_atom[members] = start + width * np.arange(len(members))
        row_of_atom[members] = row + np.arange(len(members))
        owners.append(members)
        shapes.append((len(members), width))
        start, row = start + width * len(members), row + len(members)
    row_of_atom[count == 0] = row
    places = np.arange(len(edges), dtype=np.int32)
    # Edges of one atom stand side by side in the list and in the tables.
    starts = np.concatenate([[0], np.cumsum(count)])
    slots = np.repeat((slot_of_atom - starts[:-1]).astype(np.int32), count) + places
    sources = np.full(start, len(edges), dtype=np.int32)
    sources[slots] = places
    return EdgeTables(
        edges=torch.from_numpy(edges.astype(np.int32)),
        shapes=tuple(shapes),
        slots=torch.from_numpy(slots),
        sources=torch.from_numpy(sources),
        starts=torch.from_numpy(starts.astype(np.int32)),
        atoms=torch.from_numpy(np.concatenate(owners) if owners else np.empty(0, dtype=np.int64)),
        rows=torch.from_numpy(row_of_atom),
        pairs=int((count * (count - 1)).sum()),
    )


def table_widths(counts: Int64[np.ndarray, "atoms"], costs: TableCosts) -> Int64[np.ndarray, "tables"]:
    """Widths, ascending, that make Σ (least width that holds an atom's edges)^power + table · tables smallest.

    Exact: with the distinct counts in order, the best tables for the first j of them are the best ones for the first
    i < j and one more for the rest, as wide as the largest.
    """
    distinct, atoms = np.unique(-(-counts // _WIDTH_STEP) * _WIDTH_STEP, return_counts=True)
    before = np.concatenate([[0], np.cumsum(atoms)])
    best, cuts = np.zeros(len(before)), np.zeros(len(before), dtype=np.int64)
    for end in range(1, len(before)):
        totals = best[:end] + (before[end] - before[:end]) * float(distinct[end - 1]) ** costs.power + costs.table
        cuts[end] = totals.argmin()
        best[end] = totals[cuts[end]]
    end, chosen = len(distinct), []
    while end:
        chosen.append(distinct[end - 1])
        end = int(cuts[end])
    return np.array(chosen[::-1], dtype=np.int64)
