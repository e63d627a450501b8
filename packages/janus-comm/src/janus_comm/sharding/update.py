"""From reduced gradients to new parameters: one scalar between the ranks, and one optimiser a bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from janus_comm.communicator import Communicator
from janus_comm.sharding.gather import GatherNodes


def gradient_norm(parameters: Iterable[nn.Parameter], ranks: Communicator) -> Float[Tensor, ""]:
    """The norm of the whole gradient, whose rows lie on these ranks; one number is added up between them.

    Parameters without a gradient count as zero. The ranks are those of a unit: its replicas hold the same rows.
    """
    own = [_rows(parameter.grad) for parameter in parameters if parameter.grad is not None]
    device = own[0].device if own else None
    squares = torch.zeros((), dtype=torch.float64, device=device)
    if own:
        squares = torch.stack(torch._foreach_norm(own)).double().square().sum()
    return ranks.sum(squares).sqrt()


def clip_gradients(parameters: Iterable[nn.Parameter], norm: Float[Tensor, ""], largest: float) -> None:
    """Scale gradients so that their norm, if it is larger, becomes the largest; without asking the device for it."""
    own = [_rows(parameter.grad) for parameter in parameters if parameter.grad is not None]
    if own:
        torch._foreach_mul_(own, (largest / norm).clamp(max=1).to(own[0].dtype))


class BucketwiseUpdate:
    """An optimiser a bucket, so that the next step's first gathers go on while later buckets are updated.

    Args:
        nodes: the sharded model.
        make_optimizer: of a bucket's shards.
        largest_norm: of the whole gradient; larger ones are scaled down to it. None leaves them.
    """

    def __init__(
        self,
        nodes: GatherNodes,
        make_optimizer: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer],
        largest_norm: float | None = None,
    ) -> None:
        self._nodes, self._largest = nodes, largest_norm
        trained = ([shard for shard in bucket.shards if shard.requires_grad] for bucket in nodes.buckets)
        self.optimizers = {index: make_optimizer(shards) for index, shards in enumerate(trained) if shards}

    def step(self) -> Float[Tensor, ""]:
        """Update all parameters, those that the next forward pass needs first before the others; the gradient's norm.

        Every rank calls it.
        """
        nodes = self._nodes
        shards = [shard for bucket in nodes.buckets for shard in bucket.shards]
        norm = gradient_norm(shards, nodes.ranks)
        if self._largest is not None:
            clip_gradients(shards, norm, self._largest)
        first, later = nodes.first_needed()
        for index in first:
            self._update(index)
        nodes.look_ahead()
        for index in later:
            self._update(index)
        return norm

    def _update(self, index: int) -> None:
        if index in self.optimizers:
            self.optimizers[index].step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()


def _rows(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
