"""Checkpoints of a training: complete or absent, and everything that makes the trajectory.

torch.distributed.checkpoint is imported where it is used: it takes as long to import as torch itself.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from janus_train.failure import UserError
from janus_train.state import Progress, TrainingState


def save_checkpoint(directory: Path, state: TrainingState, keep: int) -> Path:
    """Writes `directory/step-NNNNNN` under another name first, renames it, and removes all but the newest `keep`."""
    from torch.distributed.checkpoint.state_dict_saver import save

    final = directory / f"step-{state.progress.step:06d}"
    partial = directory / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with _one_process():
        save(_tensors(state), checkpoint_id=partial, no_dist=True)
    (partial / "progress.json").write_text(json.dumps(asdict(state.progress)))
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    for old in sorted(directory.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return final


def load_checkpoint(directory: Path, state: TrainingState) -> None:
    """Puts the newest complete checkpoint of a run into the state.

    Raises:
        UserError: there is none, or it is damaged or of another model.
    """
    from torch.distributed.checkpoint.state_dict import set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    newest = max(directory.glob("step-*"), default=None)
    if newest is None:
        raise UserError(f"no checkpoint in {directory}; start the run anew in another directory with 'train'")
    tensors = _tensors(state)
    try:
        with _one_process():
            load(tensors, checkpoint_id=newest, no_dist=True)
        progress = Progress(**json.loads((newest / "progress.json").read_text()))
    except Exception as error:
        raise UserError(
            f"the checkpoint {newest} cannot be read ({type(error).__name__}: {error}); remove it to resume from an "
            "earlier one"
        ) from error
    set_state_dict(
        state.model, state.optimizer, model_state_dict=tensors["model"], optim_state_dict=tensors["optimizer"]
    )
    state.mean.updates = tensors["mean_updates"]
    torch.set_rng_state(tensors["random"])
    state.progress = progress


@contextmanager
def _one_process() -> Iterator[None]:
    """One rank writes for all: torch warns that it is alone, which is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _tensors(state: TrainingState) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, optimizer = get_state_dict(state.model, state.optimizer)
    mean = state.mean
    return {"model": model, "optimizer": optimizer, "mean": mean.weights, "mean_updates": mean.updates,
            "random": torch.get_rng_state()}  # fmt: skip
