"""What the planner knows of a model: sizes alone, so that any model that can say them can be planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int64
from numpy import ndarray

from janus_comm.sharding.layout import BucketLayout, bucket_layout
from janus_train.plan.kept import Kept
from janus_train.plan.products import Operand, Product, passes

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ModelShape:
    """A conservative potential of blocks with routed experts.

    Attributes:
        name: for people.
        products: all products of matrices but those of routed experts.
        blocks: shapes of the parameters of each block that are sharded, routed experts left out.
        rest: shapes of those that belong to no block.
        replicated: numbers of all parameters that every rank has whole.
        terms: of the loss.
        layers: for each layer of routed experts what its rows are, `edges` or `atoms`.
        experts: of each layer.
        expert_hidden: hidden units of an expert.
        width: features of an atom, of a message and of an expert's row.
        edge_width: features of an edge.
        selection: experts of each element in each layer.
        kept: what a step keeps for its derivatives.
        operations: that a step starts on a device, one after the other, views left out.
    """

    name: str
    products: tuple[Product, ...]
    blocks: tuple[tuple[Shape, ...], ...]
    rest: tuple[Shape, ...]
    replicated: int
    terms: tuple[str, ...]
    layers: tuple[str, ...]
    experts: int
    expert_hidden: int
    width: int
    edge_width: int
    selection: Int64[ndarray, "layers elements top_k"]
    kept: tuple[Kept, ...]
    operations: int

    @property
    def top_k(self) -> int:
        """Experts of an element."""
        return int(self.selection.shape[2])

    def layouts(self, ranks: int) -> list[BucketLayout]:
        """How each block, and last the rest, is shared by ranks."""
        return [bucket_layout(shapes, len(shapes), ranks) for shapes in (*self.blocks, self.rest)]


def flops_of_experts(shape: ModelShape, pairs: int, checkpoint: bool = False) -> int:
    """Floating point operations of a step for so many pairs of a row and an expert of some layers; experts of blocks
    that are computed again take two forward passes more.
    """
    often = passes(Operand.MOVING, Operand.TRAINED).step + (2 if checkpoint else 0)
    return 2 * often * 3 * shape.width * shape.expert_hidden * pairs


def flops_of_gates(shape: ModelShape, elements: Sequence[int]) -> int:
    """Floating point operations that a step on one process spends on gradients of gates: so many elements that have
    rows in each layer, and one dot product as long as an expert's second matrix for each expert of each of them.
    """
    return 2 * sum(elements) * shape.top_k * shape.width * shape.expert_hidden
