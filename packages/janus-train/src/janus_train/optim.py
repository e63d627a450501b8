"""AdamW, its schedule, and the running mean of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from janus_train.config import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices, and none on norms, biases and router tables."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if parameter.dim() >= 2 and "router" not in name else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def learning_rate(step: int, max_steps: int, config: OptimConfig) -> float:
    """Learning rate of a step (the first is 0): linear warm-up, then a cosine that ends at the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(max_steps - 1 - config.warmup_steps, 1)
    cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return config.lr * (config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine)


def running_mean(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model whose weights follow it: `mean ← d · mean + (1 − d) · weight`.

    The decay d grows from 0.1 to `decay` over the first steps, so that a short run's mean is not its random start.
    """

    @torch.no_grad()
    def update(means: Sequence[Tensor], weights: Sequence[Tensor], updates: Tensor | int) -> None:
        count = float(updates)
        now = min(decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(list(means), list(weights), 1 - now)

    return AveragedModel(model, multi_avg_fn=update)
