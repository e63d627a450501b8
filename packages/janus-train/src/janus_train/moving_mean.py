"""The running mean of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingMean:
    """The running mean of a model's trained parameters: `mean ← d · mean + (1 − d) · weight`.

    The decay d grows from 0.1 to `decay` over the first updates, so that a short run's mean is not its random start.
    Only this rank's part of a sharded parameter has a mean here.

    Args:
        model: whose parameters are followed; they keep their storage.
        decay: 0 means that the mean is the weights themselves, and nothing is held.

    Attributes:
        weights: the mean of each trained parameter, by name.
        updates: how many there were; the first one copies.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._decay = decay
        self._followed = {name: own_part(parameter) for name, parameter in trained.items()} if decay else {}
        self.weights = {name: part.clone() for name, part in self._followed.items()}
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights of a step that was just done."""
        now = min(self._decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        self.updates += 1
        if self.weights:
            torch._foreach_lerp_(list(self.weights.values()), list(self._followed.values()), 1 - now)

    @torch.no_grad()
    def restart(self) -> None:
        """Begins anew from the weights as they are now."""
        self.updates = 0
        for name, mean in self.weights.items():
            mean.copy_(self._followed[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the means where the model has its parameters for as long as the context lasts.

        One parameter at a time changes places, so that this takes the memory of the largest one.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, mean in self.weights.items():
            weight = self._followed[name]
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, as an ordinary one without a graph that shares its memory."""
    detached = tensor.detach()
    return detached.to_local() if hasattr(detached, "to_local") else detached
