"""How often a training step by double backward computes each of a model's products of matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum


class Operand(Enum):
    """What a factor of a product depends on."""

    CONSTANT = "neither parameters nor positions"
    TRAINED = "parameters alone"
    MOVING = "positions, and parameters maybe"


@dataclass(frozen=True)
class Passes:
    """How often a step computes a product's number of operations, phase by phase."""

    forward: int
    inner: int
    outer: int

    @property
    def step(self) -> int:
        """Over all phases."""
        return self.forward + self.inner + self.outer


def passes(first: Operand, second: Operand, *, trained_above: bool = True) -> Passes:
    """The passes of one product, if energies and their derivatives in the positions enter the loss.

    The inner pass multiplies the product's cotangent with one factor for each factor that moves. Each of these products
    is differentiated in the outer pass, in the cotangent and in the factor, and so is the product itself, in both.

    Args:
        first: a factor.
        second: the other one.
        trained_above: whether the cotangent of the inner pass depends on parameters; not where the energy is a fixed
            multiple of the product.
    """
    moves = [first is Operand.MOVING, second is Operand.MOVING]
    learns = [first is not Operand.CONSTANT, second is not Operand.CONSTANT]
    again = sum(trained_above + learns[1 - place] for place in (0, 1) if moves[place])
    return Passes(forward=1, inner=sum(moves), outer=again + sum(learns))


@dataclass(frozen=True)
class Product:
    """A product of matrices in the forward pass.

    Attributes:
        name: of what it computes.
        over: what there are as many of as rows of the product: a field of `Workload`.
        multiplications: for each of them.
        passes: how often a step computes as many.
        block: which block it belongs to; None outside all.
    """

    name: str
    over: str
    multiplications: int
    passes: Passes
    block: int | None = None

    def flops(self, counts: Mapping[str, int]) -> int:
        """Floating point operations of a step; a multiplication and an addition are two."""
        return 2 * counts[self.over] * self.multiplications * self.passes.step


def flops_of_a_step(products: Sequence[Product], counts: Mapping[str, int]) -> int:
    """Floating point operations of all products of a step, so many rows given."""
    return sum(product.flops(counts) for product in products)


def computed_again(products: Sequence[Product]) -> tuple[Product, ...]:
    """The same where blocks are computed again in the inner and in the outer pass.

    What autograd leaves out of a recomputation, as nothing after it is needed, is counted all the same: the last
    product of a block, less than a thousandth of a step.
    """
    return tuple(
        product
        if product.block is None
        else replace(product, passes=replace(product.passes, forward=3 * product.passes.forward))
        for product in products
    )
