"""One training step: double backward on every rank's share, one sum over all ranks, one host synchronisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from janus_comm import Communicator
from janus_graph import Potential
from janus_train.data.batch import Batch
from janus_train.loss import loss_sums, weighted_loss


@dataclass(frozen=True)
class StepResult:
    """What a step saw, over all ranks.

    Attributes:
        loss: the weighted loss.
        terms: the mean error of each term, unweighted.
        grad_norm: norm of the whole gradient, before clipping.
    """

    loss: float
    terms: dict[str, float]
    grad_norm: float

    @property
    def finite(self) -> bool:
        """Whether the step may be taken."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def compute_gradients(
    model: nn.Module,
    potential: Potential,
    batch: Batch | None,
    counts: Mapping[str, int],
    weights: Mapping[str, float],
    world: Communicator,
) -> StepResult:
    """Leaves in every parameter's `grad` the gradient of the loss of the whole batch, the same on every rank.

    Forces and stress are derivatives of the energy that stay differentiable, so the gradient is exact (double
    backward). The loss is a sum of sums over ranks, each divided by a count that every rank knows beforehand: how a
    batch is cut does not change it.

    Args:
        model: whose parameters are trained.
        potential: the callable to differentiate; the model itself, or what wraps it.
        batch: this rank's share; None where it has none.
        counts: labels in the whole batch, over all ranks (`label_counts`).
        weights: loss terms.
        world: all ranks.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.grad = None
    values = torch.zeros(len(weights) + 1, dtype=torch.float64, device=parameters[0].device)
    if batch is not None:
        sums = loss_sums(potential(batch.graph, ("energy", *weights)), batch)
        loss = weighted_loss(sums, counts, weights)
        loss.backward()
        values = torch.stack([loss.detach(), *(sums[name].detach() for name in weights)])
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    values = world.sum(values)
    _sum_gradients(parameters, world)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    # The one synchronisation: everything the host wants to know comes in one copy.
    loss_value, *rest, grad_norm = torch.cat([values, norm.double()[None]]).tolist()
    terms = {name: total / max(counts[name], 1) for name, total in zip(weights, rest, strict=True)}
    return StepResult(loss_value, terms, grad_norm)


def clip_gradients(parameters: list[nn.Parameter], grad_norm: float, largest: float) -> None:
    """Scales all gradients down so that their norm is at most `largest`."""
    if grad_norm > largest:
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], largest / grad_norm)


def _sum_gradients(parameters: list[nn.Parameter], world: Communicator) -> None:
    if world.size == 1:
        return
    gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    flat = world.sum(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
