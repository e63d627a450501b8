"""The published MatRIS in the trainer: made anew for some data, or taken over from an official file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from janus_train.config import ModelConfig
from janus_train.data.load import DataSet
from janus_train.data.statistics import Statistics
from janus_train.failure import UserError
from matris_model import save_model
from matris_model.compat import PRESETS, MatRIS, MatRISConfig

# What follows from the data is not for the configuration to say.
_FROM_DATA = ("tasks", "elements", "reference_energy")


def compat_model(config: ModelConfig, data: DataSet, statistics: Statistics, seed: int) -> MatRIS:
    """A published MatRIS with random weights, and the reference energies and elements of these data.

    Raises:
        UserError: no such field, values that do not fit together, switches this model does not have, or data of several
            tasks or with elements the model has no place for.
    """
    if given := [name for name in _FROM_DATA if name in config.changes]:
        raise UserError(f"model.{given[0]} follows from the data; leave it out")
    require_compat(config, data.tasks)
    fields = PRESETS[config.preset].to_dict() | config.changes
    from_data = {"tasks": data.tasks, "elements": data.elements, "reference_energy": "data"}
    try:
        model = MatRIS(MatRISConfig.from_dict(fields | from_data), seed)
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    set_compat_references(model, statistics)
    return model


def require_compat(config: ModelConfig, tasks: Sequence[str]) -> None:
    """Refuses switches that a published MatRIS does not have, and data of several tasks.

    Raises:
        UserError: names the switch, or the tasks.
    """
    for name in ("fused", "triton", "checkpoint", "router"):
        if getattr(config, name) != ModelConfig.model_fields[name].default:
            raise UserError(f"model.{name} is for MatRIS-MoE; leave it out, or choose another model.preset")
    if len(tasks) > 1:
        raise UserError(
            f"a published MatRIS (model.preset={config.preset}) has one table of reference energies, and the data have "
            f"the tasks {', '.join(tasks)}; train on files of one task, or choose another model"
        )


def set_compat_references(model: nn.Module, statistics: Statistics) -> None:
    """The reference energies of the one task; there are no scales."""
    assert isinstance(model, MatRIS)
    assert model.reference_energy is not None
    energies = model.reference_energy.fc.weight
    with torch.no_grad():
        energies[0] = torch.from_numpy(statistics.references[0, 1 : energies.shape[1] + 1])


def export_reference(path: Path, output: Path) -> dict[str, Any]:
    """Writes an official file as a model directory of this project; returns what is in it.

    Raises:
        UserError: the output exists already, or the file is no official checkpoint or one that is not supported.
    """
    if output.exists():
        raise UserError(f"{output} exists; remove it or choose another --output")
    try:
        model = MatRIS.from_file(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    save_model(model, output, {"from": path.name})
    return {"parameters": parameters_of(model), "dtype": str(model.dtype).removeprefix("torch.")}


def describe_compat(name: str, config: MatRISConfig) -> dict[str, Any]:
    """Shape and parameter count, without memory. Every atom uses all parameters."""
    with torch.device("meta"):
        count = parameters_of(MatRIS(config))
    return {"model": name, "parameters_total": count, "parameters_active": count, "config": config.to_dict()}


def parameters_of(model: MatRIS) -> int:
    """Number of parameters, reference energies among them."""
    return sum(parameter.numel() for parameter in model.parameters())
