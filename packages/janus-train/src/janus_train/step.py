"""What a training step is, whichever way it is shared by the ranks; and the way in which each has the whole model."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from janus_comm import Communicator
from janus_train.data.batch import Batch, FrameSource
from janus_train.data.batching import within_budget
from janus_train.data.unit_batch import UnitBatch
from janus_train.evaluate import Prediction, predict
from janus_train.loss import Loss, weighted_loss
from janus_train.matrices import MatrixFunction, on_own_matrices
from janus_train.moving_mean import own_part
from janus_train.state import Portion


@dataclass(frozen=True)
class StepResult:
    """What a step saw, over all ranks.

    Attributes:
        loss: the weighted loss.
        terms: the mean error of each term, all tasks alike, unweighted.
        grad_norm: norm of the whole gradient, before clipping.
        stop: whether any rank was asked to stop.
    """

    loss: float
    terms: dict[str, float]
    grad_norm: float
    stop: bool = False

    @property
    def finite(self) -> bool:
        """Whether the step may be taken."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A step's data on one rank, made on the host without asking other ranks, while another step is computed.

    Attributes:
        counts: labels in the whole batch, over all ranks.
        passes: what this rank computes, one after the other, and adds up; None where it has nothing in a pass.
    """

    counts: Mapping[str, int]
    passes: Sequence[Batch | UnitBatch | None]


class TrainingStep(Protocol):
    """A way of sharing training steps between ranks. All give the same losses, gradients and predictions.

    Attributes:
        portions: which part of a parameter this rank holds, by name; parameters left out are whole on every rank.
    """

    portions: Mapping[str, Portion]

    def prepare(self, source: FrameSource, places: Sequence[int]) -> Prepared:
        """This rank's part of a step on the frames at these places."""
        ...

    def gradients(self, prepared: Prepared, stop: bool = False) -> StepResult:
        """Leaves in every parameter's `grad` this rank's portion of the gradient of the loss of the whole batch.

        Whether this rank was asked to `stop` travels with the losses, so that all ranks know of it in the same step.
        """
        ...

    def predictions(
        self, source: FrameSource, properties: Collection[str], budget: int
    ) -> Iterator[tuple[int, Prediction]]:
        """Predictions for all frames of a source, each on one of the ranks; in passes of at most `budget` edges."""
        ...

    def on_matrices(self, function: MatrixFunction, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A function of whole matrices, or of each matrix of stacks: of named parameters, or what is cut as they are.

        Each rank gets its portions of the results. Every rank calls it, with the same names.
        """
        ...

    def whole_model(self) -> nn.Module | None:
        """The whole model on the first rank, None on others. Every rank calls it."""
        ...

    def open_saved(self, directory: Path) -> None:
        """Weights that were saved, in place of the model's own. Every rank calls it."""
        ...


class ReplicatedStep:
    """Every rank has the whole model and computes whole structures; gradients are summed over all ranks.

    Args:
        model: a `janus_graph.Potential`, whose parameters are trained.
        loss: weights of its terms, or a `Loss` that says more.
        world: all ranks.
        load: opens a saved model; None where nobody asks for one.
        pass_edges: most edges that a rank computes at a time; None for no limit.
    """

    portions: Mapping[str, Portion]

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | Mapping[str, float],
        world: Communicator,
        load: Callable[[Path], nn.Module] | None = None,
        pass_edges: int | None = None,
    ) -> None:
        self.model, self.world = model, world
        self.portions = {}
        self._load, self._pass_edges = load, pass_edges
        self._device = next(model.parameters()).device
        self.loss = (loss if isinstance(loss, Loss) else Loss(dict(loss))).to(self._device)

    def prepare(self, source: FrameSource, places: Sequence[int]) -> Prepared:
        """This rank's share of the structures."""
        mine = source.shares(places, self.world.size)[self.world.rank]
        passes = within_budget(mine, source.edges, self._pass_edges)
        counts = self.loss.counts([source.frames[place] for place in places])
        return Prepared(counts, [source.batch(some) for some in passes])

    def gradients(self, prepared: Prepared, stop: bool = False) -> StepResult:
        """The gradient of the loss of the whole batch, the same on every rank.

        Forces and stress are derivatives of the energy that stay differentiable, so the gradient is exact (double
        backward). The loss is a sum of sums over ranks, each divided by a count that every rank knows beforehand: how a
        batch is cut does not change it.
        """
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in parameters:
            parameter.grad = None
        values = step_values(self.loss.weights, stop, self._device)
        for batch in prepared.passes:
            if isinstance(batch, Batch):
                values[:-1] += self._pass(batch.to(self._device), prepared.counts)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        values = self.world.sum(values)
        sum_gradients(parameters, self.world)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        return step_result(values, norm, prepared.counts, self.loss.weights)

    def _pass(self, batch: Batch, counts: Mapping[str, int]) -> Tensor:
        weights = self.loss.weights
        errors = self.loss.errors(self.model(batch.graph, ("energy", *weights)), batch)
        sums = {name: items.sum() for name, items in self.loss.by_task(errors, batch).items()}
        loss = weighted_loss(sums, counts, weights)
        loss.backward()
        return torch.stack([loss.detach(), *(errors[name].detach().sum() for name in weights)])

    def predictions(
        self, source: FrameSource, properties: Collection[str], budget: int
    ) -> Iterator[tuple[int, Prediction]]:
        """Predictions for this rank's share of the frames."""
        mine = source.shares(range(len(source.frames)), self.world.size)[self.world.rank]
        return predict(self.model, source, mine, properties, budget)

    def on_matrices(self, function: MatrixFunction, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The function of everything, on every rank."""
        return on_own_matrices(function, tensors)

    def whole_model(self) -> nn.Module | None:
        """The model, on the first rank."""
        return self.model if self.world.rank == 0 else None

    def open_saved(self, directory: Path) -> None:
        """The saved weights."""
        assert self._load is not None
        self.model.load_state_dict(self._load(directory).state_dict())


def step_values(weights: Mapping[str, float], stop: bool, device: torch.device) -> Tensor:
    """What ranks add up in a step: the loss, its terms, and last how many were asked to stop."""
    values = torch.zeros(len(weights) + 2, dtype=torch.float64, device=device)
    if stop:
        values[-1] = 1
    return values


def step_result(values: Tensor, norm: Tensor, counts: Mapping[str, int], weights: Mapping[str, float]) -> StepResult:
    """What the host wants to know of a step, in one copy: the one synchronisation."""
    loss, *rest, asked, grad_norm = torch.cat([values, norm.double()[None]]).tolist()
    terms = {name: total / max(counts[name], 1) for name, total in zip(weights, rest, strict=True)}
    return StepResult(loss, terms, grad_norm, asked > 0)


def clip_gradients(parameters: Sequence[nn.Parameter], grad_norm: float, largest: float) -> None:
    """Scales all gradients down so that their norm is at most `largest`."""
    if grad_norm > largest:
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_([own_part(gradient) for gradient in gradients], largest / grad_norm)


def sum_gradients(parameters: Sequence[nn.Parameter], ranks: Communicator) -> None:
    """Adds up the gradients of parameters that are whole on all these ranks."""
    gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    if ranks.size == 1 or not gradients:
        return
    flat = ranks.sum(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
