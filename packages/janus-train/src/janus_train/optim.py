"""AdamW, its schedule, and the running mean of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from janus_train.config import OptimConfig
from janus_train.parameter_names import matches, require_matches


def make_optimizer(
    model: nn.Module, config: OptimConfig, is_table: Callable[[str], bool] = lambda name: "router" in name
) -> torch.optim.AdamW:
    """AdamW on the parameters that are trained, with weight decay on matrices, and none on norms, biases and tables.

    Args:
        model: whose parameters are trained; those that ask for no gradient have no state.
        config: rates, decays, and the parameters that have others.
        is_table: whether the parameter of a name has rows for elements or tasks. What a batch does not have stays as it
            is there: decay would have it fade.

    Raises:
        UserError: a group whose pattern is in no name.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    require_matches([group.match for group in config.groups], trained, "optim.groups")
    groups: dict[tuple[float, float, type], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        own = next((group for group in config.groups if matches(group.match, name)), None)
        decay = config.weight_decay if own is None or own.weight_decay is None else own.weight_decay
        decayed = parameter.dim() >= 2 and not is_table(name)
        # Sharded parameters may be DTensors, which no fused update takes together with others.
        key = (decay if decayed else 0.0, 1.0 if own is None else own.lr_factor, type(parameter.data))
        groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "lr_factor": factor}
            for (decay, factor, _), parameters in groups.items()
        ],
        lr=config.lr,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of a step, times each group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


def learning_rate(step: int, max_steps: int, config: OptimConfig) -> float:
    """Learning rate of a step (the first is 0): linear warm-up, then a cosine that ends at the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(max_steps - 1 - config.warmup_steps, 1)
    cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return config.lr * (config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine)


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
