"""What one rank holds of a batch that the ranks of a unit compute together: integers and labels, made on the host."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from janus_graph import HIGHEST_ATOMIC_NUMBER, AtomGraph, build_graph
from janus_graph.packing import CostModel
from janus_graph.partition import atom_work, deal_structures, partition_structure
from janus_graph.parts import GraphPart, graph_part
from janus_train.data.batch import Batch, FrameSource, label_batch

# Below this, most atoms of a part of bulk matter are near a cut: halos cost more than the cutting saves.
_FEWEST_ATOMS_OF_A_PART = 2000

TOLERANCE = 0.1
"""Ranks of a unit may have this share more to do than the mean before a structure is cut."""


class SmallParts(UserWarning):
    """A structure is cut into parts so small that their halos dominate."""


@dataclass(frozen=True, eq=False)
class UnitBatch:
    """One rank's share of its unit's batch.

    Attributes:
        batch: the structures that this rank owns atoms of, and its atoms' labels; at least one structure, of which it
            may own nothing.
        part: its graph, and what it sends to whom.
        places: of its structures among those of the unit's batch.
        counted: which of its structures' energies and stresses it counts, so that each is counted once in the unit.
        shared: row of each structure that is cut in the table of those, -1 for others.
        cut: how many structures of the unit's batch are cut.
        atom_rows: atoms of each atomic number on each rank of the unit, [ranks, 119].
        edge_rows: edges centred on them.
    """

    batch: Batch
    part: GraphPart
    places: tuple[int, ...]
    counted: Bool[Tensor, "structures"]
    shared: Int64[Tensor, "structures"]
    cut: int
    atom_rows: Int64[np.ndarray, "ranks elements"]
    edge_rows: Int64[np.ndarray, "ranks elements"]

    def rows_of_layers(self, kinds: Sequence[str]) -> Int64[np.ndarray, "layers ranks elements"]:
        """What layers of experts see on each rank, for layers whose rows are "atoms" or "edges"."""
        return np.stack([self.atom_rows if kind == "atoms" else self.edge_rows for kind in kinds])


def unit_batch(source: FrameSource, places: Sequence[int], rank: int, ranks: int, idle: bool = False) -> UnitBatch:
    """What a rank of a unit holds of the frames at these places.

    Structures that stay whole are read by their owner alone. Of those that are cut every rank of the unit looks at the
    edges, because the rows of all ranks follow from them; which no rank is asked for.

    Args:
        source: of the frames.
        places: of the unit's batch, at least one.
        rank: this one.
        ranks: in the unit.
        idle: whether the unit has nothing to compute; its ranks hold no atom of the first frame, and no label counts.
    """
    if idle:
        nobody = np.full(int(source.atoms[places[0]]), ranks, dtype=np.int64)
        none = np.zeros((ranks, HIGHEST_ATOMIC_NUMBER + 1), dtype=np.int64)
        return _share(source, places[:1], {0: nobody}, (none, none), rank)
    pieces = deal_structures(source.costs(places).tolist(), ranks, TOLERANCE)
    owner: dict[int, np.ndarray] = {}
    atom_rows = np.zeros((ranks, HIGHEST_ATOMIC_NUMBER + 1), dtype=np.int64)
    edge_rows = np.zeros_like(atom_rows)
    for at, (place, dealt) in enumerate(zip(places, pieces, strict=True)):
        if len(dealt) == 1:
            own = np.full(int(source.atoms[place]), dealt[0].part, dtype=np.int64)
            elements, atoms, edges = source.rows_by_element[place]
            atom_rows[dealt[0].part, elements] += atoms
            edge_rows[dealt[0].part, elements] += edges
        else:
            structure = source.frames[place].structure
            graph = build_graph([structure], source.cutoff, source.near_cutoff)
            work = graph.in_input_order(torch.from_numpy(atom_work(graph, CostModel()))).numpy()
            own = partition_structure(structure, work, dealt, source.cutoff)
            _add_rows(atom_rows, edge_rows, graph, own)
            _warn_of_small_parts(source, place, own, len(dealt))
        owner[at] = own
    return _share(source, places, owner, (atom_rows, edge_rows), rank)


def _share(
    source: FrameSource,
    places: Sequence[int],
    owner: dict[int, np.ndarray],
    rows: tuple[np.ndarray, np.ndarray],
    rank: int,
) -> UnitBatch:
    """This rank's graph and labels, given who owns the atoms of each structure."""
    ranks = len(rows[0])
    # A graph has at least one structure; a rank without any atom has no atoms of the first.
    held = [at for at, own in owner.items() if (own == rank).any()] or [0]
    frames = [source.frames[places[at]] for at in held]
    graph = build_graph([frame.structure for frame in frames], source.cutoff, source.near_cutoff)
    owners = np.concatenate([owner[at] for at in held])[graph.input_index.numpy()]
    part = graph_part(graph, owners, rank, ranks + 1)  # the last one owns what nobody does
    part = replace(part, send_rows=part.send_rows[:ranks], receive_counts=part.receive_counts[:ranks])
    cut = [at for at, own in owner.items() if len(own) and own.min() != own.max()]
    row_of = {at: row for row, at in enumerate(cut)}
    first_owner = [int(owner[at][0]) if len(owner[at]) else 0 for at in held]
    return UnitBatch(
        batch=label_batch(frames, part.graph),
        part=part,
        places=tuple(held),
        counted=torch.tensor([first == rank for first in first_owner]),
        shared=torch.tensor([row_of.get(at, -1) if (owner[at] == rank).any() else -1 for at in held]),
        cut=len(cut),
        atom_rows=rows[0],
        edge_rows=rows[1],
    )


def _add_rows(atom_rows: np.ndarray, edge_rows: np.ndarray, graph: AtomGraph, own: np.ndarray) -> None:
    """Counts atoms and edges of a structure that is cut, by owner and element."""
    owners, numbers = own[graph.input_index.numpy()], graph.atomic_numbers.numpy()
    edges = np.bincount(graph.edge_index[0].numpy(), minlength=graph.atoms)
    np.add.at(atom_rows, (owners, numbers), 1)
    np.add.at(edge_rows, (owners, numbers), edges)


def _warn_of_small_parts(source: FrameSource, place: int, own: np.ndarray, parts: int) -> None:
    if len(own) < parts * _FEWEST_ATOMS_OF_A_PART:
        warnings.warn(
            f"{source.frames[place].origin}: {len(own)} atoms are cut into {parts} parts, of fewer than "
            f"{_FEWEST_ATOMS_OF_A_PART} atoms each: most of them are near a cut, and halos cost more than is gained. "
            "Larger batches (data.batch_edges) or smaller units (mesh.unit) leave structures whole",
            SmallParts,
            stacklevel=2,
        )
