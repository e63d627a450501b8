"""A batch: the graph of some frames, their labels and masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from janus_graph import AtomGraph, build_graph
from janus_graph.packing import CostModel, share_out
from janus_train.data.batching import Draws
from janus_train.data.frame import Frame
from janus_train.data.sizes import frame_sizes


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
    """Frames of which any selection can be had as a batch. Graphs are made anew each time: that is as fast as keeping.

    Args:
        frames: all frames.
        cutoff: of the model, Å.
        near_cutoff: of the model, Å.
        draws: the frames in their order, so many at a time, and how often each is drawn in an epoch; nothing for once.

    Attributes:
        atoms: atoms of each frame.
        edges: edges of each frame.
        rows_by_element: for each frame its atomic numbers, the atoms of each, and the edges centred on them.
    """

    def __init__(self, frames: Sequence[Frame], cutoff: float, near_cutoff: float, draws: Sequence[Draws] = ()) -> None:
        self.frames, self.draws = frames, tuple(draws)
        self.cutoff, self.near_cutoff = cutoff, near_cutoff
        self._sizes = frame_sizes(frames, cutoff, near_cutoff)
        self.atoms, self.edges = self._sizes.atoms, self._sizes.edges
        self.rows_by_element = self._sizes.by_element

    def costs(self, places: Sequence[int] | np.ndarray) -> Int64[np.ndarray, "places"]:
        """What each of some frames costs to compute."""
        return CostModel()(self._sizes.of(places))

    def batch(self, places: Sequence[int]) -> Batch | None:
        """The batch of the frames at these places; None for no places at all."""
        if not places:
            return None
        frames = [self.frames[place] for place in places]
        return label_batch(frames, build_graph([frame.structure for frame in frames], self.cutoff, self.near_cutoff))

    def shares(self, places: Sequence[int], ranks: int) -> list[list[int]]:
        """The same places, a share for each rank, at about the same cost."""
        picked = np.array(places, dtype=np.int64)
        shares = share_out(self.costs(picked).tolist(), self.atoms[picked].tolist(), ranks)
        return [picked[share].tolist() for share in shares]


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


def label_batch(frames: Sequence[Frame], graph: AtomGraph) -> Batch:
    """The labels of frames, in the order of a graph of their structures, or of a part of it."""
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
