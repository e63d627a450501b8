"""Functions of whole matrices of which the ranks of a unit hold parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from janus_comm import Communicator

MatrixFunction = Callable[[Float[Tensor, "*stack rows columns"]], Float[Tensor, "*stack rows columns"]]
"""Of each matrix of a stack by itself."""
OnMatrices = Callable[[MatrixFunction, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Applies a function to named matrices, or stacks of them, of which ranks hold parts; gives each rank its parts."""


def on_own_matrices(function: MatrixFunction, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where every rank holds everything, each computes everything."""
    return {name: function(tensor) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class CutStack:
    """A stack of matrices that ranks hold slices of.

    Attributes:
        shape: of the whole; the last two dimensions are rows and columns.
        dimension: that is cut.
        sizes: of each rank's slice along it.
    """

    shape: tuple[int, ...]
    dimension: int
    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        """Matrices of the stack."""
        return math.prod(self.shape[:-2])

    @property
    def side(self) -> int:
        """Which side of each matrix is cut, -2 or -1; others mean that the stack is cut between matrices."""
        return self.dimension - len(self.shape)

    def slice_shape(self, rank: int) -> tuple[int, int]:
        """What a rank holds of each matrix."""
        rows, columns = self.shape[-2:]
        return (self.sizes[rank], columns) if self.side == -2 else (rows, self.sizes[rank])

    @property
    def work(self) -> int:
        """Multiplications that a product of a matrix with its transpose takes."""
        return self.shape[-2] * self.shape[-1] * min(self.shape[-2:])


class MatrixExchange:
    """Each matrix is put together on one rank, which computes there; ranks have about as much to do as each other.

    Two exchanges, whatever the number of matrices, of about what a rank holds, rather than all of the matrices on all
    ranks, which for experts would be the whole model.

    Args:
        stacks: matrices by name; others, which all ranks have whole, are computed by all.
        ranks: that hold the slices, in the order of the sizes.
    """

    def __init__(self, stacks: Mapping[str, CutStack], ranks: Communicator) -> None:
        self._ranks = ranks
        # A stack that is cut between its matrices has them whole where they are.
        self._stacks = {name: stack for name, stack in stacks.items() if stack.side >= -2}
        owners = owners_of(list(self._stacks.values()), ranks.size)
        self._orders = [torch.from_numpy(np.argsort(own, kind="stable")) for own in owners]
        self._owned = [np.bincount(own, minlength=ranks.size).tolist() for own in owners]
        shape = (len(self._stacks), ranks.size)
        owned = np.array(self._owned, dtype=np.int64).reshape(shape)
        # Numbers of each matrix that each rank holds.
        held = np.array(
            [math.prod(stack.slice_shape(other)) for stack in self._stacks.values() for other in range(ranks.size)],
            dtype=np.int64,
        ).reshape(shape)
        self._sent, self._received = (held[:, [ranks.rank]] * owned).T, (owned[:, [ranks.rank]] * held).T

    def __call__(self, function: MatrixFunction, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's slices of the function of each matrix. Every rank calls it, with slices of all the stacks."""
        at_home = {name: function(tensor) for name, tensor in tensors.items() if name not in self._stacks}
        return {**at_home, **self._on_owners(function, tensors)} if self._stacks else at_home

    def _on_owners(self, function: MatrixFunction, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rank = self._ranks.rank
        plan = list(zip(self._stacks.items(), self._orders, self._owned, strict=True))
        by_owner = [
            tensors[name].reshape(stack.count, *stack.slice_shape(rank))[order].split(owned)
            for (name, stack), order, owned in plan
        ]
        slices = self._exchange(by_owner, self._sent, self._received)
        results: list[Sequence[Tensor]] = []
        for ((_, stack), _, owned), parts in zip(plan, slices, strict=True):
            whole = torch.cat(
                [part.reshape(owned[rank], *stack.slice_shape(other)) for other, part in enumerate(parts)],
                dim=stack.side,
            )
            results.append(function(whole).split(stack.sizes, dim=stack.side))
        from_owners = self._exchange(results, self._received, self._sent)
        found = {}
        for ((name, stack), order, _), parts in zip(plan, from_owners, strict=True):
            rows = torch.cat(parts).reshape(stack.count, *stack.slice_shape(rank))
            found[name] = rows[order.argsort()].reshape(tensors[name].shape)
        return found

    def _exchange(
        self,
        outgoing: Sequence[Sequence[Tensor]],
        sent: Int64[np.ndarray, "ranks stacks"],
        received: Int64[np.ndarray, "ranks stacks"],
    ) -> list[list[Tensor]]:
        """What the ranks have for this one, stack by stack and rank by rank, flat."""
        rows = torch.cat([stack[other].flatten() for other in range(self._ranks.size) for stack in outgoing])
        arrived = self._ranks.exchange_rows(rows, sent.sum(axis=1).tolist(), received.sum(axis=1).tolist())
        parts = arrived.split(received.flatten().tolist())
        return [list(parts[place :: len(outgoing)]) for place in range(len(outgoing))]


def owners_of(stacks: Sequence[CutStack], ranks: int) -> list[Int64[np.ndarray, "matrices"]]:
    """Which rank computes each matrix of each stack: the largest first, each to the rank with the least to do."""
    load = np.zeros(ranks, dtype=np.int64)
    owners = [np.zeros(stack.count, dtype=np.int64) for stack in stacks]
    for place in sorted(range(len(stacks)), key=lambda place: (-stacks[place].work, place)):
        for matrix in range(stacks[place].count):
            least = int(load.argmin())
            owners[place][matrix] = least
            load[least] += stacks[place].work
    return owners
