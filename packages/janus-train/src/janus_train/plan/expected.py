"""What the ranks of a unit will have to compute, foretold from the sizes of structures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from janus_graph.packing import CostModel
from janus_graph.partition import deal_structures
from janus_graph.tables import EDGE_TABLES, NEAR_TABLES, TableCosts, table_widths
from janus_train.data.unit_batch import TOLERANCE
from janus_train.plan.halo import Halo, expected_halos
from janus_train.plan.statistics import DataStatistics, StructureSize
from janus_train.plan.workload import ELEMENTS, Workload


def batch_of_edges(data: DataStatistics, edges: int) -> list[StructureSize]:
    """Structures of the data, the same ones every time, with about so many edges together; at least one.

    They are taken in a fixed random order, each as often as the others, until one more would lead further away.
    """
    order = np.random.default_rng(0).permutation(len(data.sizes)).tolist()
    chosen: list[StructureSize] = []
    held = 0
    while True:
        size = data.sizes[order[len(chosen) % len(order)]]
        more = held + max(size.all_edges, 1)
        if chosen and abs(more - edges) > abs(held - edges):
            return chosen
        chosen.append(size)
        held = more


def work_of(size: StructureSize, cost: CostModel) -> int:
    """What a structure costs: what `cost` says of `janus_graph.packing.structure_sizes`."""
    work = cost.edge * size.all_edges + cost.near_pair * size.near_pairs + cost.atom * size.all_atoms
    return work + cost.element * len(size.atoms)


def unit_workloads(batch: Sequence[StructureSize], ranks: int, cutoff: float) -> list[Workload]:
    """The workload of each rank that shares a batch.

    Structures are dealt out, and cut where that must be, as `janus_graph.partition` does it. A part of a structure has
    its share of everything, rounded; its halo is that of a box evenly filled with atoms.

    Args:
        batch: the structures.
        ranks: of the unit.
        cutoff: edges are shorter, Å.
    """
    totals = [work_of(size, CostModel()) for size in batch]
    pieces: list[list[tuple[StructureSize, float, Halo]]] = [[] for _ in range(ranks)]
    cut = 0
    for size, total, dealt in zip(batch, totals, deal_structures(totals, ranks, TOLERANCE), strict=True):
        shares = [piece.work / total if total else 1.0 for piece in dealt]
        halos = expected_halos(size.heights, size.periodic, size.all_atoms, shares, cutoff)
        for piece, share, halo in zip(dealt, shares, halos, strict=True):
            pieces[piece.part].append((size, share, halo))
        cut += len(dealt) > 1
    return [_workload(own, cut) for own in pieces]


def _workload(pieces: Sequence[tuple[StructureSize, float, Halo]], cut: int) -> Workload:
    tables: dict[str, Counter[int]] = {name: Counter() for name in ("atoms", "edges", "neighbours", "near")}
    for size, share, _ in pieces:
        for name, table in tables.items():
            table.update(_scaled(getattr(size, name), share))
    near = {count: atoms for count, atoms in tables["near"].items() if count > 1}
    return Workload(
        structures=max(1, len(pieces)),
        atoms=tables["atoms"].total(),
        edges=tables["edges"].total(),
        near_edges=sum(count * atoms for count, atoms in near.items()),
        places=_places(tables["neighbours"], EDGE_TABLES)[0],
        near_slots=_places(near, NEAR_TABLES)[0],
        near_places=_places(near, NEAR_TABLES)[1],
        atoms_of_element=_by_element(tables["atoms"]),
        edges_of_element=_by_element(tables["edges"]),
        sent=round(sum(halo.sent for _, _, halo in pieces)),
        received=round(sum(halo.received for _, _, halo in pieces)),
        cut=cut,
    )


def _scaled(table: Mapping[int, int], share: float) -> dict[int, int]:
    """A share of each entry, rounded so that the sum is rounded too."""
    ends = np.rint(np.cumsum([table[key] for key in sorted(table)]) * share).astype(np.int64)
    return dict(zip(sorted(table), np.diff(ends, prepend=0).tolist(), strict=True))


def _places(atoms_by_edges: Mapping[int, int], costs: TableCosts) -> tuple[int, int]:
    """Places of dense tables, and pairs of places of one atom, for atoms of which so many have so many edges."""
    held = {edges: atoms for edges, atoms in sorted(atoms_by_edges.items()) if edges and atoms}
    counts = np.repeat(list(held), list(held.values())).astype(np.int64)
    widths = table_widths(counts, costs)
    if not len(counts):
        return 0, 0
    of_atom = widths[np.searchsorted(widths, counts)]
    return int(of_atom.sum()), int((of_atom**2).sum())


def _by_element(table: Mapping[int, int]) -> np.ndarray:
    found = np.zeros(ELEMENTS, dtype=np.int64)
    for number, count in table.items():
        found[number] = count
    return found
