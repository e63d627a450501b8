"""Noise on the selection of experts early in a training, the same on every rank and in every repetition."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from janus_moe.selection import ELEMENTS


def selection_noise(experts: int, seed: int, step: int, layer: int) -> Float32[Tensor, "elements experts"]:
    """Normal noise of unit size for `ElementRouter.explore`, on the host; it depends on these numbers alone.

    Args:
        experts: experts of the layer.
        seed: of the training.
        step: the step it is for.
        layer: place of the layer in the model; each explores on its own.
    """
    random = np.random.default_rng([seed, step, layer])
    return torch.from_numpy(random.standard_normal((ELEMENTS, experts), dtype=np.float32))


def noise_scale(step: int, start: float, freeze_at: int) -> float:
    """Size of the noise at a step: from `start` at step 0 down to zero at the step at which selections freeze."""
    return start * max(0.0, 1 - step / freeze_at) if freeze_at > 0 else 0.0
