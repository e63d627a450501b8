"""The graph that every model sees: a batch of structures as one set of atoms and edges."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int32, Int64
from torch import Tensor

from janus_graph.tables import EdgeTables


@dataclass(frozen=True, eq=False)
class AtomGraph:
    """A batch of structures as one disconnected graph. Shapes, units and orders are said here and nowhere else.

    Atoms are sorted by atomic number over the whole batch, then by structure, and edges by their centre, then
    neighbour, then shift, so that all atoms of an element, all edges centred on them and all edges of one atom are
    contiguous slices. `input_index` leads back to the order the structures were given in. Positions and cells are
    float64; a model casts edge vectors, not coordinates.

    Attributes:
        positions: Å.
        atomic_numbers: ascending.
        structure_index: which structure an atom belongs to.
        input_index: place of each atom in the structures as they were given, one after the other.
        cells: rows are lattice vectors, Å.
        periodic: which lattice directions repeat.
        charges: total charge, e.
        spins: multiplicity 2S + 1.
        tasks: index of the data set whose reference energies apply.
        composition: fraction of each element (column = atomic number) in the whole structure.
        edge_index: row 0 the centre, row 1 the neighbour. Neighbours may point past the owned atoms at ghost rows that
            a halo appends.
        neighbour_numbers: atomic number of each edge's neighbour, even where another rank owns it.
        edge_shifts: lattice translation of the neighbour, in whole cells.
        elements: atomic numbers that are present, ascending, as host integers.
        atoms_per_element: atoms of each of `elements`.
        edges_per_element: edges centred on each of `elements`.
        around: all edges of each atom as rows of dense tables, for sums over neighbours.
        near: the edges shorter than the near cutoff, of atoms with two or more, for three-body terms.
        cutoff: Å; every edge is strictly shorter.
        near_cutoff: Å; every near edge is strictly shorter.
        reverse_edge: where each edge is in the other direction, from neighbour to centre; None in a part of a graph,
            whose edges end at ghost atoms that have their own edges elsewhere.
    """

    positions: Float64[Tensor, "atoms 3"]
    atomic_numbers: Int64[Tensor, "atoms"]
    structure_index: Int64[Tensor, "atoms"]
    input_index: Int64[Tensor, "atoms"]
    cells: Float64[Tensor, "structures 3 3"]
    periodic: Bool[Tensor, "structures 3"]
    charges: Int64[Tensor, "structures"]
    spins: Int64[Tensor, "structures"]
    tasks: Int64[Tensor, "structures"]
    composition: Float64[Tensor, "structures elements"]
    edge_index: Int64[Tensor, "2 edges"]
    neighbour_numbers: Int32[Tensor, "edges"]
    edge_shifts: Float64[Tensor, "edges 3"]
    elements: tuple[int, ...]
    atoms_per_element: tuple[int, ...]
    edges_per_element: tuple[int, ...]
    around: EdgeTables
    near: EdgeTables
    cutoff: float
    near_cutoff: float
    reverse_edge: Int32[Tensor, "edges"] | None = None

    @property
    def atoms(self) -> int:
        """Number of atoms."""
        return self.positions.shape[0]

    @property
    def structures(self) -> int:
        """Number of structures."""
        return self.cells.shape[0]

    @property
    def edges(self) -> int:
        """Number of directed edges."""
        return self.edge_index.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.positions.device

    def to(self, device: torch.device | str) -> AtomGraph:
        """The same graph on another device."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = value.to(device) if isinstance(value, (Tensor, EdgeTables)) else value
        return AtomGraph(**moved)

    def replace(self, **changes: Any) -> AtomGraph:
        """The same graph with some fields changed; other edges have no reverse edges unless those are given too."""
        if "edge_index" in changes:
            changes.setdefault("reverse_edge", None)
        return replace(self, **changes)

    def in_input_order(self, per_atom: Tensor) -> Tensor:
        """Rows that belong to this graph's atoms, in the order the structures were given in."""
        return torch.empty_like(per_atom).index_copy(0, self.input_index, per_atom)

    def from_input_order(self, per_atom: Tensor) -> Tensor:
        """Rows given in the order of the structures, in the order of this graph's atoms."""
        return per_atom.index_select(0, self.input_index)
