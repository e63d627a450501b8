"""A batch: the graph of some frames, their labels and masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from janus_graph import AtomGraph, NeighborList, build_graph, neighbor_list
from janus_train.data.frame import Frame

# Neighbour lists of up to so many edges are kept (36 bytes each); beyond that they are made again for every batch,
# which costs some 0.3 ms a structure.
_EDGES_KEPT = 5_000_000


@dataclass(frozen=True, eq=False)
class Batch:
    """What one rank computes in one pass. Labels that a frame lacks are zeros with a mask of False.

    Attributes:
        graph: the structures.
        atoms: atoms of each structure.
        energy: eV.
        has_energy: which structures have one.
        forces: eV/Å, in the order of the graph's atoms.
        has_forces: which atoms have them.
        stress: eV/Å³, tension positive.
        has_stress: which structures have one and repeat in all directions.
        magmoms: magnitudes, μB.
        has_magmoms: which atoms have one.
    """

    graph: AtomGraph
    atoms: Float64[Tensor, "structures"]
    energy: Float64[Tensor, "structures"]
    has_energy: Bool[Tensor, "structures"]
    forces: Float64[Tensor, "atoms 3"]
    has_forces: Bool[Tensor, "atoms"]
    stress: Float64[Tensor, "structures 3 3"]
    has_stress: Bool[Tensor, "structures"]
    magmoms: Float64[Tensor, "atoms"]
    has_magmoms: Bool[Tensor, "atoms"]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in dataclasses.fields(self)})


class FrameSource:
    """Frames of which any selection can be had as a batch; remembers neighbour lists while that is cheap.

    Args:
        frames: all frames.
        cutoff: of the model, Å.
        near_cutoff: of the model, Å.

    Attributes:
        edges: edges of each frame: what it costs.
    """

    def __init__(self, frames: Sequence[Frame], cutoff: float, near_cutoff: float) -> None:
        self.frames = frames
        self.cutoff, self.near_cutoff = cutoff, near_cutoff
        self._lists: dict[int, NeighborList] = {}
        edges, kept = [], 0
        for place, frame in enumerate(frames):
            found = neighbor_list(frame.structure, cutoff)
            edges.append(len(found))
            if kept + len(found) <= _EDGES_KEPT:
                self._lists[place] = found
                kept += len(found)
        self.edges = np.array(edges, dtype=np.int64)

    def batch(self, places: Sequence[int]) -> Batch | None:
        """The batch of the frames at these places; None for no places at all."""
        if not places:
            return None
        frames = [self.frames[place] for place in places]
        lists = [
            self._lists[place] if place in self._lists else neighbor_list(frame.structure, self.cutoff)
            for place, frame in zip(places, frames, strict=True)
        ]
        graph = build_graph([frame.structure for frame in frames], self.cutoff, self.near_cutoff, lists)
        return _label(frames, graph)


def label_counts(frames: Sequence[Frame]) -> dict[str, int]:
    """How many items each loss term sums over: structures for energy and stress, atoms for forces and moments."""
    return {
        "energy": sum(frame.has("energy") for frame in frames),
        "forces": sum(len(frame.structure) for frame in frames if frame.has("forces")),
        "stress": sum(_has_stress(frame) for frame in frames),
        "magmoms": sum(len(frame.structure) for frame in frames if frame.has("magmoms")),
    }


def _has_stress(frame: Frame) -> bool:
    return frame.has("stress") and frame.structure.has_volume


def _label(frames: Sequence[Frame], graph: AtomGraph) -> Batch:
    sizes = np.array([len(frame.structure) for frame in frames])

    def per_structure(label: str, shape: tuple[int, ...]) -> Tensor:
        values = [getattr(frame, label) for frame in frames]
        return torch.from_numpy(np.stack([np.zeros(shape) if value is None else np.asarray(value) for value in values]))

    def per_atom(label: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        values = [getattr(frame, label) for frame in frames]
        rows = [np.zeros((n, *shape)) if v is None else v for v, n in zip(values, sizes, strict=True)]
        mask = np.repeat([value is not None for value in values], sizes)
        return (
            graph.from_input_order(torch.from_numpy(np.concatenate(rows))),
            graph.from_input_order(torch.from_numpy(mask)),
        )

    forces, has_forces = per_atom("forces", (3,))
    magmoms, has_magmoms = per_atom("magmoms", ())
    return Batch(
        graph=graph,
        atoms=torch.from_numpy(sizes.astype(np.float64)),
        energy=per_structure("energy", ()),
        has_energy=torch.tensor([frame.has("energy") for frame in frames]),
        forces=forces,
        has_forces=has_forces,
        stress=per_structure("stress", (3, 3)),
        has_stress=torch.tensor([_has_stress(frame) for frame in frames]),
        magmoms=magmoms.abs(),
        has_magmoms=has_magmoms,
    )
