"""MatRIS-MoE, or a published MatRIS, that goes on from trained weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from janus_train.config import STARTED, ModelConfig, RouterConfig, StartConfig
from janus_train.data.load import DataSet
from janus_train.data.statistics import Given, Statistics
from janus_train.failure import UserError
from janus_train.recipes.matris import Inheritance, check_changes, compat_recipe, model_config, moe_recipe, open_matris
from janus_train.recipes.matris_compat import require_compat, set_compat_references
from janus_train.recipes.recipe import Recipe, Start
from matris_model import (
    PRESETS,
    MatRISMoE,
    MatRISMoEConfig,
    inherit_weights,
    nearest_element,
    saved_config,
)
from matris_model.compat import PRESETS as COMPAT_PRESETS
from matris_model.compat import MatRIS

# Files of this project's own models; any other file is an official one.
_OWN_FILES = (".safetensors", ".json")


def matris_start(config: StartConfig, shared: bool) -> Start:
    """Opens what a run starts from.

    Args:
        config: which model, and what new tasks and elements begin as.
        shared: whether ranks will share the model. Then nobody opens it whole: each reads what it needs, block by
            block, and the numbers that files check themselves with are not computed.

    Raises:
        UserError: no such model, a damaged one, or one that has no such task.
    """
    path = config.model
    assert path is not None
    if path.is_file() and path.suffix not in _OWN_FILES:
        try:
            return _compat_start(config, MatRIS.from_file(path))
        except ValueError as error:
            raise UserError(f"start.model: {error}") from error
    try:
        if shared and isinstance(shape := saved_config(path), MatRISMoEConfig):
            return _moe_start(config, shape, _reader(path))
    except ValueError as error:
        raise UserError(f"start.model: {error}") from error
    model = open_matris(path)
    if isinstance(model, MatRIS):
        return _compat_start(config, model)
    return _moe_start(config, model.config, model.state_dict().get)


def _reader(path: Path) -> Callable[[str], Tensor | None]:
    from safetensors import safe_open

    directory = path if path.is_dir() else path.parent

    def read(name: str) -> Tensor | None:
        with safe_open(directory / "model.safetensors", framework="pt") as file:
            return file.get_tensor(name) if name in file.keys() else None  # noqa: SIM118  no mapping

    return read


def _moe_start(config: StartConfig, old: MatRISMoEConfig, read: Callable[[str], Tensor | None]) -> Start:
    references, scales = read("references"), read("scales")
    assert references is not None
    assert scales is not None
    if config.task is not None and config.task not in old.tasks:
        raise UserError(f"start.task: {config.model} has no task '{config.task}'; it has {', '.join(old.tasks)}")

    def given(tasks: Sequence[str]) -> dict[str, Given]:
        found = {}
        for place, task in enumerate(tasks):
            kept = place < len(old.tasks)
            row = place if kept else _begins_as(config, old, task)
            source = f"those of {old.tasks[row]} in {config.model}"
            found[task] = Given(_known(references[row].numpy(), old), float(scales[row]), source, kept)
        return found

    return Start(old.tasks, old.elements, given, partial(_moe_recipe, config, old, read))


def _known(row: np.ndarray, old: MatRISMoEConfig) -> dict[int, float]:
    """References that a task has. A zero says that it had no frame with the element; all zeros, that it has none."""
    elements = np.flatnonzero(row) if row.any() else np.array(old.elements, dtype=np.int64)
    return {int(z): float(row[z]) for z in elements}


def _begins_as(config: StartConfig, old: MatRISMoEConfig, task: str) -> int:
    """Index of the task that a new one begins as."""
    if config.task is None and len(old.tasks) > 1:
        raise UserError(
            f"the data have the task '{task}', which {config.model} does not know; set start.task to the one of its "
            f"tasks that it is to begin as ({', '.join(old.tasks)}), or name the frames' task as that model does"
        )
    return old.tasks.index(config.task) if config.task is not None else 0


def _moe_recipe(
    start: StartConfig,
    old: MatRISMoEConfig,
    read: Callable[[str], Tensor | None],
    config: ModelConfig,
    data: DataSet,
    statistics: Statistics,
    seed: int,
) -> Recipe:
    """The model of a run that starts from another: of its shape, with the tasks and elements of the data as well."""
    head = _require_same_shape(start, config, old)
    tasks = {place: _begins_as(start, old, data.tasks[place]) for place in range(len(old.tasks), len(data.tasks))}
    elements = new_elements(start, old.elements, data.elements)
    known = (*old.elements, *elements) if old.elements else ()
    shape = old.replace(tasks=data.tasks, elements=known, magnetic_moments=old.magnetic_moments or head)

    def inherit(model: MatRISMoE, module: nn.Module) -> None:
        inherit_weights(model, module, read, tasks, elements)

    energy_out = read("energy_out.weight")
    assert energy_out is not None
    recipe = moe_recipe(shape, config, statistics, seed, Inheritance(inherit, energy_out.dtype))
    return dataclasses.replace(recipe, notes=_notes(start, old, data.tasks, tasks, elements, head))


def _require_same_shape(start: StartConfig, config: ModelConfig, old: MatRISMoEConfig) -> bool:
    """Refuses settings of the model that are not those of the weights. Returns whether a head for magnetic moments is
    to be added, which is the one thing that can be.
    """
    if config.router != RouterConfig():
        raise UserError(
            f"model.router: the experts of elements were settled when {start.model} was trained; leave model.router out"
        )
    if config.preset in COMPAT_PRESETS:
        raise UserError(f"model.preset={config.preset}: {start.model} is a MatRIS-MoE; leave model.preset out")
    if config.preset == STARTED:
        check_changes(config)
        wanted = dict(config.changes)
    else:
        wanted = model_config(config).to_dict()
        if "magnetic_moments" not in config.changes:
            del wanted["magnetic_moments"]
    has = old.to_dict()
    head = bool(wanted.get("magnetic_moments", False)) and not old.magnetic_moments
    for name, value in wanted.items():
        if name in ("tasks", "elements") or value == has[name] or (name == "magnetic_moments" and head):
            continue
        raise UserError(
            f"model.{name} is {value} here{f' (preset {config.preset})' if name not in config.changes else ''}, and "
            f"{has[name]} in {start.model}; a run that starts from a model keeps its shape: leave it out"
        )
    return head


def new_elements(start: StartConfig, old: Sequence[int], wanted: Sequence[int]) -> dict[int, int]:
    """For each element that the trained model has not seen the one that it begins as, by atomic number.

    Args:
        start: what the user says of them.
        old: elements that the trained model knows; empty: all.
        wanted: those of the data.

    Raises:
        UserError: the user says something of an element that is not new, or names one that is not known.
    """
    from ase.data import atomic_numbers, chemical_symbols

    new = [z for z in wanted if old and z not in old]
    said = {atomic_numbers[symbol]: atomic_numbers[other] for symbol, other in start.elements.items()}
    for z, other in said.items():
        if z not in new:
            names = ", ".join(chemical_symbols[n] for n in new) or "none"
            raise UserError(f"start.elements: {chemical_symbols[z]} is no new element of the data; those are {names}")
        if other not in old:
            raise UserError(
                f"start.elements: {start.model} does not know {chemical_symbols[other]}; it knows "
                f"{', '.join(chemical_symbols[n] for n in old)}"
            )
    return {z: said.get(z) or nearest_element(z, old) for z in new}


def _notes(
    start: StartConfig,
    old: MatRISMoEConfig,
    names: Sequence[str],
    tasks: Mapping[int, int],
    elements: Mapping[int, int],
    head: bool,
) -> list[str]:
    from ase.data import chemical_symbols

    notes = [f"starting from {start.model}, which knows the tasks {', '.join(old.tasks)}"]
    notes += [f"new task {names[place]}: begins as {old.tasks[other]}" for place, other in tasks.items()]
    if elements:
        pairs = ", ".join(f"{chemical_symbols[z]} as {chemical_symbols[other]}" for z, other in elements.items())
        notes.append(f"new elements begin with experts, gates and embeddings of others: {pairs}")
    if head:
        notes.append("magnetic moments: the head is new, with random weights")
    return notes


def _compat_start(config: StartConfig, model: MatRIS) -> Start:
    if config.elements:
        raise UserError("start.elements: a published MatRIS knows its elements; leave it out")
    if config.task is not None:
        raise UserError("start.task: a published MatRIS has one task; leave it out")
    (task,) = model.config.tasks

    def given(tasks: Sequence[str]) -> dict[str, Given]:
        row = model.references[0].numpy()
        own = {int(z): float(row[z]) for z in np.flatnonzero(row)}
        return {name: Given(own, 1.0, f"those of {config.model}", kept=name == task) for name in tasks}

    def make_recipe(shape: ModelConfig, data: DataSet, statistics: Statistics, seed: int) -> Recipe:
        require_compat(shape, data.tasks)
        has = model.config.to_dict()
        wanted = dict(shape.changes)
        if shape.preset != STARTED:
            if shape.preset in PRESETS:
                raise UserError(f"model.preset={shape.preset}: {config.model} is a published MatRIS; leave it out")
            wanted = COMPAT_PRESETS[shape.preset].to_dict() | wanted if shape.preset in COMPAT_PRESETS else wanted
        for name, value in wanted.items():
            if name in ("tasks", "elements", "reference_energy"):
                continue
            if name not in has or value != has[name]:
                raise UserError(
                    f"model.{name} is {value} here, and {has.get(name, 'nothing')} in {config.model}; a run that "
                    "starts from a model keeps its shape: leave it out"
                )
        grown = MatRIS(
            dataclasses.replace(
                model.config,
                tasks=data.tasks,
                elements=tuple({*model.config.elements, *data.elements}) if model.config.elements else (),
                reference_energy=model.config.reference_energy or "data",
            ),
            seed,
        )
        if model.dtype == torch.float64:  # constants stay as exact as they are made: no cast to what they are not
            grown.double()
        grown.load_state_dict(model.state_dict(), strict=model.reference_energy is not None)
        set_compat_references(grown, statistics)
        note = f"starting from {config.model}, a published MatRIS for the task {task}"
        return dataclasses.replace(compat_recipe(grown), notes=[note])

    # Its one table of references is for the one task that the data have.
    return Start((), model.config.elements, given, make_recipe)
