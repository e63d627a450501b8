"""The optimiser of a run and its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from janus_train.config import OptimConfig
from janus_train.matrices import OnMatrices, on_own_matrices
from janus_train.orthogonal import Muon
from janus_train.parameter_names import matches, require_matches


def make_optimizer(
    model: nn.Module,
    config: OptimConfig,
    is_table: Callable[[str], bool] = lambda name: "router" in name,
    is_matrix: Callable[[str], bool] | None = None,
    on_matrices: OnMatrices = on_own_matrices,
) -> Muon:
    """AdamW on the parameters that are trained, and, where the configuration says `orthogonal`, Muon on matrices that
    turn features into features. Weight decay on matrices, and none on norms, biases and tables.

    Args:
        model: whose parameters are trained; those that ask for no gradient have no state.
        config: rates, decays, and the parameters that have others.
        is_table: whether the parameter of a name has rows for elements or tasks. What a batch does not have stays as it
            is there: decay would have it fade.
        is_matrix: whether the parameter of a name is a matrix, or a stack of them, all of whose rows and columns are
            features. None where nobody knows: then what has two dimensions and is no table decays.
        on_matrices: applies functions to matrices of which this rank holds parts; `TrainingStep.on_matrices`.

    Raises:
        UserError: a group whose pattern is in no name.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    require_matches([group.match for group in config.groups], trained, "optim.groups")
    groups: dict[tuple[float, float, bool, type], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in trained.items():
        own = next((group for group in config.groups if matches(group.match, name)), None)
        decay = config.weight_decay if own is None or own.weight_decay is None else own.weight_decay
        decayed = is_matrix(name) if is_matrix is not None else parameter.dim() >= 2 and not is_table(name)
        orthogonal = config.orthogonal and decayed and is_matrix is not None
        # Sharded parameters may be DTensors, which no fused update takes together with others.
        key = (decay if decayed else 0.0, 1.0 if own is None else own.lr_factor, orthogonal, type(parameter.data))
        groups.setdefault(key, []).append((name, parameter))
    return Muon(
        [
            {"params": parameters, "weight_decay": decay, "lr_factor": factor, "orthogonal": orthogonal}
            for (decay, factor, orthogonal, _), parameters in groups.items()
        ],
        config.lr,
        on_matrices,
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
