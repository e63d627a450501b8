"""AdamW whose matrices move along the orthogonal factor of their momentum (Muon)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from janus_train.matrices import OnMatrices, on_own_matrices
from janus_train.moving_mean import own_part

# Coefficients of the quintic Newton-Schulz iteration of Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon):
# five steps bring all singular values between about 0.7 and 1.2.
_QUINTIC, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5
_MOMENTUM = 0.95
# Learning rate of matrices in that of everything else. The singular values of an update are about this rate, whatever
# the size of the matrix: a root mean square like AdamW's (arXiv 2502.16982, section 2.2) moves wide ones so far that
# after some thousand steps gradients burst.
_RATE = 10.0


class Muon(torch.optim.AdamW):
    """AdamW for all groups but those with `orthogonal`, whose update is the orthogonal factor of their momentum.

    What most atoms agree on dominates the gradient of a matrix; its orthogonal factor moves as far along every other
    direction, so that what only few atoms know of is learnt as soon. Its size does not depend on that of the gradient:
    a matrix of a stack that a step has no gradient of, an expert of no element there, stays as it is, and so does its
    momentum.

    `torch.optim.Muon` has neither stacks of matrices, such as experts are, nor matrices that ranks hold parts of.

    Args:
        groups: of named parameters, with `lr_factor`, `weight_decay` and `orthogonal`; those of orthogonal groups are
            matrices, or stacks of matrices in their last two dimensions.
        lr: learning rate of all but matrices, whose rate is ten times as high.
        on_matrices: applies functions to matrices of which this rank holds parts.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, on_matrices: OnMatrices = on_own_matrices) -> None:
        super().__init__(groups, lr=lr, fused=True)
        self._on_matrices = on_matrices

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        every = self.param_groups
        self.param_groups = [group for group in every if not group["orthogonal"]]
        try:
            value: float | None = super().step(closure)
        finally:
            self.param_groups = every
        moving = {
            name: (parameter, group)
            for group in every
            if group["orthogonal"]
            for name, parameter in zip(group["param_names"], group["params"], strict=True)
            if parameter.grad is not None
        }
        used = {name: _used(_gradient(parameter)) for name, (parameter, _) in moving.items()}
        ahead = {name: self._ahead(parameter, used[name]) for name, (parameter, _) in moving.items()}
        updates = self._on_matrices(orthogonal_factor, ahead)
        for name, (parameter, group) in moving.items():
            own, rate = own_part(parameter), _RATE * group["lr"]
            own.mul_(1 - rate * group["weight_decay"] * used[name]).add_(updates[name], alpha=-rate)
        return value

    def _ahead(self, parameter: nn.Parameter, used: Float[Tensor, "*stack 1 1"]) -> Tensor:
        """Where this rank's part of the momentum will be in a step more like this one (Nesterov), zero without one."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter, requires_grad=False)
        gradient, momentum = _gradient(parameter), own_part(state["momentum"])
        momentum.lerp_(gradient, (1 - _MOMENTUM) * used)
        return gradient.lerp(momentum, _MOMENTUM * used)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return own_part(parameter.grad)


def _used(gradient: Float[Tensor, "*stack rows columns"]) -> Float[Tensor, "*stack 1 1"]:
    """One for each matrix of a stack that there is a gradient of, else zero."""
    return (gradient != 0).any(dim=-1, keepdim=True).any(dim=-2, keepdim=True).to(gradient)


def orthogonal_factor(matrices: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows columns"]:
    """U Vᵀ of each matrix U S Vᵀ, nearly: singular values end between 0.7 and 1.2; those that are zero stay zero."""
    a, b, c = _QUINTIC
    # Frobenius' norm bounds the largest singular value. Where there is no gradient there is no update.
    found = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(matrices.dtype).tiny)
    tall = found.shape[-2] > found.shape[-1]
    found = found.mT if tall else found
    for _ in range(_ITERATIONS):
        square = found @ found.mT
        found = a * found + (b * square + c * square @ square) @ found
    return found.mT if tall else found
