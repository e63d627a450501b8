"""The loss, as sums and counts, so that it is the same however a batch is cut over ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float64
from torch import Tensor

from janus_graph import Properties
from janus_train.data.batch import Batch

# Keeps the slope of a length finite where an error vanishes, eV/Å squared: far below any force that matters.
_SMALLEST_SQUARE = 1e-12

OF_STRUCTURES = ("energy", "stress")
"""Loss terms with one error for each structure; the others have one for each atom."""


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
