"""A model as those take it who only use it."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from matris_model.model_file import SavedModel, load_model


def frozen_model(
    model_or_path: SavedModel | str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> SavedModel:
    """A model for use: one that was saved, or a copy of the given one, with weights that ask for no gradient.

    Raises:
        ValueError: no model at the path, or what else `load_model` refuses.
    """
    # A copy: moving the caller's model, or freezing it, would be a surprise in the middle of a training.
    model = load_model(model_or_path) if isinstance(model_or_path, (str, Path)) else copy.deepcopy(model_or_path)
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)
