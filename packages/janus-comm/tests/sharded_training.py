"""Steps of a sharded model on many ranks, and the same steps on one process."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from conservative import Potential, Structure, loss_of, relative_difference
from janus_comm import by_double_backward

LEARNING_RATE = 3e-3


def one_process(model: Potential, structures: Sequence[Structure], steps: int = 1):
    """Loss and gradients of every step, and the parameters after all, with AdamW."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    losses, gradients = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(
            sum(
                by_double_backward(lambda x, s=example: model(x, s), [example.positions], loss_of(example)).loss
                for example in structures
            )
        )
        for parameter in optimizer.param_groups[0]["params"]:
            # What nobody uses has a gradient of zero, as on many ranks, where one cannot know of the others.
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradients.append(
            {name: p.grad.clone() for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
        )
        optimizer.step()
    return losses, gradients, {n: p.detach() for n, p in model.named_parameters(remove_duplicate=False)}


def many_steps(model: Potential, route, phase, own: Sequence[Structure], steps: int = 1):
    """The same on one rank of many, with the structures that are its own, maybe none."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    losses, gradients = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(
            sum(
                route(lambda x, s=example: model(x, s), [example.positions], loss_of(example), phase).loss
                for example in own
            )
        )
        gradients.append(
            {name: p.grad for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
        )
        optimizer.step()
    return losses, gradients, {n: p.detach() for n, p in model.named_parameters(remove_duplicate=False)}


def rows_of(whole: Tensor, rank: int, ranks: int) -> Tensor:
    """The rows of a parameter that a rank keeps, cut with a tool of torch's own."""
    parts = (whole if whole.dim() else whole.reshape(1)).chunk(ranks)
    return parts[rank] if rank < len(parts) else whole.reshape(whole.shape or (1,))[:0]


def worst_difference(found: dict[str, Tensor], expected: dict[str, Tensor], rank: int, ranks: int) -> float:
    """Largest difference of a shard from its rows of the whole, over the whole's largest entry."""
    assert found.keys() == expected.keys()
    worst = 0.0
    for name, whole in expected.items():
        rows = rows_of(whole, rank, ranks)
        assert found[name].shape == rows.shape, name
        if rows.numel():
            worst = max(worst, float((found[name] - rows).abs().max() / whole.abs().max().clamp(min=1e-6)))
    return worst


__all__ = ["many_steps", "one_process", "relative_difference", "rows_of", "worst_difference"]
