"""What a rank has to compute in a step, as integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Int64

from janus_graph import HIGHEST_ATOMIC_NUMBER, AtomGraph
from janus_graph.parts import GraphPart

ELEMENTS = HIGHEST_ATOMIC_NUMBER + 1


@dataclass(frozen=True, eq=False)
class Workload:
    """What a rank has to compute.

    Attributes:
        structures: that it owns atoms of; at least one, also where it owns none.
        atoms: that it owns.
        edges: centred on these.
        near_edges: those of them with three-body terms.
        places: of edges in dense tables, padding included.
        near_slots: of near edges in dense tables, padding included.
        near_places: of pairs of these.
        atoms_of_element: atoms of each atomic number.
        edges_of_element: edges by the atomic number of their centre.
        sent: rows that others need of it, once for each of them.
        received: rows that it needs of others.
        cut: structures of the unit's batch that several ranks share.
    """

    structures: int
    atoms: int
    edges: int
    near_edges: int
    places: int
    near_slots: int
    near_places: int
    atoms_of_element: Int64[np.ndarray, "elements"]
    edges_of_element: Int64[np.ndarray, "elements"]
    sent: int = 0
    received: int = 0
    cut: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """What products and kept tensors are counted over."""
        names = ("structures", "atoms", "edges", "near_edges", "places", "near_slots", "near_places")
        # Atoms whose queries reach the energy: none where nobody has an edge to ask about.
        askers = self.atoms if self.edges else 0
        present = int(np.count_nonzero(self.atoms_of_element) + np.count_nonzero(self.edges_of_element))
        return {"askers": askers, "present": present, **{name: getattr(self, name) for name in names}}

    def rows_of_element(self, over: str) -> Int64[np.ndarray, "elements"]:
        """Rows that a layer of experts sees of each atomic number, `over` being `edges` or `atoms`."""
        return self.edges_of_element if over == "edges" else self.atoms_of_element

    def times(self, factor: int) -> Workload:
        """So many times as much of everything."""
        return Workload(**{field.name: getattr(self, field.name) * factor for field in fields(self)})


def workload_of_graph(graph: AtomGraph, sent: int = 0, received: int = 0, cut: int = 0) -> Workload:
    """The workload of a graph, or of a part of one that sends and receives so many rows."""
    atoms_of, edges_of = np.zeros(ELEMENTS, dtype=np.int64), np.zeros(ELEMENTS, dtype=np.int64)
    atoms_of[list(graph.elements)], edges_of[list(graph.elements)] = graph.atoms_per_element, graph.edges_per_element
    return Workload(
        structures=graph.structures,
        atoms=graph.atoms,
        edges=graph.edges,
        near_edges=len(graph.near.edges),
        places=sum(atoms * width for atoms, width in graph.around.shapes),
        near_slots=sum(atoms * width for atoms, width in graph.near.shapes),
        near_places=sum(atoms * width**2 for atoms, width in graph.near.shapes),
        atoms_of_element=atoms_of,
        edges_of_element=edges_of,
        sent=sent,
        received=received,
        cut=cut,
    )


def workload_of_part(part: GraphPart, cut: int = 1) -> Workload:
    """The workload of one rank's part of a batch of which so many structures are cut."""
    return workload_of_graph(part.graph, sum(len(rows) for rows in part.send_rows), sum(part.receive_counts), cut)


def rows_of_layers(workloads: Sequence[Workload], layers: Sequence[str]) -> Int64[np.ndarray, "layers ranks elements"]:
    """The table that experts are planned from: rows of each element on each rank in each layer."""
    return np.stack([[workload.rows_of_element(over) for workload in workloads] for over in layers])
