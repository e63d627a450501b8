"""The loss, as sums and counts, so that it is the same however a batch is cut over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from janus_graph import Properties
from janus_train.config import LossConfig
from janus_train.data.batch import Batch, label_counts
from janus_train.data.frame import Frame
from janus_train.failure import UserError

# Keeps the slope of a length finite where an error vanishes, eV/Å squared: far below any force that matters.
_SMALLEST_SQUARE = 1e-12

OF_STRUCTURES = ("energy", "stress")
"""Loss terms with one error for each structure; the others have one for each atom."""


@dataclass(frozen=True, eq=False)
class Loss:
    """`Σ weight · Σ factor of the task · error / count` over the terms.

    Attributes:
        weights: of the terms that count, by property.
        factors: of each task, by property; tasks of properties that are left out all count alike.
        energy_huber: error per atom below which it counts by its square, eV; zero: it never does.
        forces_over_structures: whether each structure's forces count alike, instead of each atom's.
    """

    weights: Mapping[str, float]
    factors: Mapping[str, Float64[Tensor, "tasks"]] = field(default_factory=dict)
    energy_huber: float = 0.0
    forces_over_structures: bool = False

    def to(self, device: torch.device) -> Loss:
        """The same loss for batches on a device."""
        return replace(self, factors={name: factor.to(device) for name, factor in self.factors.items()})

    def errors(self, predicted: Properties, batch: Batch) -> dict[str, Float64[Tensor, "items"]]:
        """The error of each item of each term: what is added up and divided by `counts` of the whole batch."""
        errors = loss_errors(predicted, batch)
        if self.energy_huber:
            errors["energy"] = _huber(errors["energy"], self.energy_huber)
        if self.forces_over_structures and "forces" in errors:
            # Its share of its structure's mean: all atoms of the structure are counted, on whichever ranks they are.
            errors["forces"] = errors["forces"] / batch.atoms.index_select(0, batch.graph.structure_index)
        return {name: errors[name] for name in self.weights}

    def by_task(self, errors: Mapping[str, Tensor], batch: Batch) -> dict[str, Float64[Tensor, "items"]]:
        """The errors times the factors of their tasks."""
        weighed = dict(errors)
        for name, factor in self.factors.items():
            of_structures = factor.index_select(0, batch.graph.tasks)
            if name not in OF_STRUCTURES:
                of_structures = of_structures.index_select(0, batch.graph.structure_index)
            weighed[name] = weighed[name] * of_structures
        return weighed

    def counts(self, frames: Sequence[Frame]) -> dict[str, int]:
        """How many items each term of a whole batch sums over."""
        counts = label_counts(frames)
        if self.forces_over_structures:
            counts["forces"] = sum(frame.has("forces") for frame in frames)
        return counts


def make_loss(config: LossConfig, tasks: Sequence[str]) -> Loss:
    """The loss of a configuration, for data of these tasks.

    Raises:
        UserError: factors for a task that is not among them, or of zero for all tasks of a term.
    """
    if unknown := [task for task in config.tasks if task not in tasks]:
        raise UserError(f"loss.tasks: the data have no task '{unknown[0]}'; they have {', '.join(tasks)}")
    factors = {}
    for name in config.weights:
        of_tasks = [getattr(config.tasks[task], name) if task in config.tasks else 1.0 for task in tasks]
        if not any(of_tasks):
            raise UserError(f"loss.tasks: {name} has a factor of zero in all tasks; set loss.{name}=0 to leave it out")
        if any(factor != 1.0 for factor in of_tasks):
            factors[name] = torch.tensor(of_tasks, dtype=torch.float64)
    return Loss(config.weights, factors, config.energy_huber, config.forces_over == "structures")


def loss_errors(predicted: Properties, batch: Batch) -> dict[str, Float64[Tensor, "items"]]:
    """The error of each item of each property that was predicted, zero where there is no label.

    Energy: |error| per atom of each structure, eV/atom. Forces: length of the error vector of each atom, eV/Å. Stress:
    mean |error| of the nine components of each structure, eV/Å³. Magnetic moments: |error| of each atom, μB.
    """
    errors = {"energy": (predicted.energy - batch.energy).abs() / batch.atoms * batch.has_energy}
    if predicted.forces is not None:
        squares = (predicted.forces - batch.forces).square().sum(dim=1)
        errors["forces"] = (squares + _SMALLEST_SQUARE).sqrt() * batch.has_forces
    if predicted.stress is not None:
        errors["stress"] = (predicted.stress - batch.stress).abs().mean(dim=(1, 2)) * batch.has_stress
    if predicted.magmoms is not None:
        errors["magmoms"] = (predicted.magmoms - batch.magmoms).abs() * batch.has_magmoms
    return errors


def loss_sums(predicted: Properties, batch: Batch) -> dict[str, Float64[Tensor, ""]]:
    """Sums of `loss_errors`. Divide by `label_counts` of the whole batch."""
    return {name: errors.sum() for name, errors in loss_errors(predicted, batch).items()}


def weighted_loss(
    sums: Mapping[str, Tensor], counts: Mapping[str, int], weights: Mapping[str, float]
) -> Float64[Tensor, ""]:
    """`Σ weight · sum / count` over the terms with a weight; counts are those of the whole batch over all ranks."""
    terms = [weight / max(counts[name], 1) * sums[name] for name, weight in weights.items()]
    return torch.stack(terms).sum()


def _huber(errors: Float64[Tensor, "items"], below: float) -> Float64[Tensor, "items"]:
    """Quadratic below a size and linear above it, with one slope where they meet; of errors that are not negative."""
    return torch.where(errors < below, errors.square() / (2 * below), errors - below / 2)
