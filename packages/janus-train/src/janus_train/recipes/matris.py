"""How MatRIS-MoE, or the published MatRIS, is made from a configuration, saved, opened and looked at."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from janus_moe import ELEMENTS
from janus_moe.statistics import write_expert_maps
from janus_train.config import ModelConfig
from janus_train.data.load import DataSet
from janus_train.data.statistics import Statistics
from janus_train.failure import UserError
from janus_train.recipes.matris_compat import compat_model, describe_compat
from janus_train.recipes.matris_experts import ExpertsSettle, atoms_of_run, expert_maps, moe_layers
from janus_train.recipes.matris_sharding import frequencies_of, matris_sharding, set_references
from janus_train.recipes.recipe import Recipe
from matris_model import (
    PLAIN,
    PRESETS,
    Formulas,
    MatRISMoE,
    MatRISMoEConfig,
    call_block,
    checkpoint_block,
    count_parameters,
    fused_formulas,
    load_model,
    preset_config,
    save_model,
    triton_formulas,
)
from matris_model.compat import PRESETS as COMPAT_PRESETS
from matris_model.compat import MatRIS, MatRISConfig

# What follows from the data is not for the configuration to say.
_FROM_DATA = ("tasks", "elements")


def model_config(config: ModelConfig) -> MatRISMoEConfig:
    """The preset with the user's changes.

    Raises:
        UserError: no such preset or field, or values that do not fit together.
    """
    if config.preset not in PRESETS:
        nearest = difflib.get_close_matches(config.preset, _preset_names(), n=1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"there are {', '.join(_preset_names())}"
        raise UserError(f"model.preset: no preset '{config.preset}'; {hint}")
    fields = {f.name: f.type for f in dataclasses.fields(MatRISMoEConfig) if f.name not in _FROM_DATA}
    for name, value in config.changes.items():
        if name not in fields:
            nearest = difflib.get_close_matches(name, [*fields, "preset"], n=1, cutoff=0.5)
            hint = f"did you mean 'model.{nearest[0]}'?" if nearest else f"fields are {', '.join(fields)}"
            raise UserError(f"unknown key 'model.{name}'; {hint}")
        accepted = {"int": (int,), "float": (int, float), "bool": (bool,)}[str(fields[name])]
        if not isinstance(value, accepted) or (isinstance(value, bool) and fields[name] != "bool"):
            raise UserError(f"model.{name}: must be {fields[name]} (given: {value!r})")
    try:
        return preset_config(config.preset, **config.changes)
    except ValueError as error:
        raise UserError(f"model: {error}") from error


def matris_recipe(config: ModelConfig, data: DataSet, statistics: Statistics, seed: int) -> Recipe:
    """A model for these data: their tasks and elements, reference energies and scales, experts of elements that have
    about as much to do as each other; random weights.
    """
    if config.preset in COMPAT_PRESETS:
        compat = compat_model(config, data, statistics, seed)
        return Recipe(compat, compat.config.cutoff, compat.config.near_cutoff, _save, open_matris)
    model = _moe_model(config, data, statistics, seed)
    settle = ExpertsSettle(config.router, seed)
    sharding = matris_sharding(model, statistics, seed)
    return Recipe(
        model, model.config.cutoff, model.config.near_cutoff, _save, open_matris, settle, expert_maps, sharding
    )


def _moe_model(config: ModelConfig, data: DataSet, statistics: Statistics, seed: int) -> MatRISMoE:
    shape = model_config(config).replace(tasks=data.tasks, elements=data.elements)
    if data.has("magmoms") and "magnetic_moments" not in config.changes:
        shape = shape.replace(magnetic_moments=True)
    formulas = _formulas(config)
    run_block = checkpoint_block if config.checkpoint else call_block
    model = MatRISMoE(shape, seed, formulas, run_block, frequencies_of(statistics))
    set_references(model, statistics)
    return model


def _formulas(config: ModelConfig) -> Formulas:
    formulas = fused_formulas() if config.fused else PLAIN
    if not config.triton:
        return formulas
    try:
        return triton_formulas(formulas)
    except ImportError as error:
        raise UserError(f"model.triton: {error}") from error


def open_matris(path: Path) -> MatRISMoE | MatRIS:
    """The model that a run or `save_model` left in a directory.

    Raises:
        UserError: none there, or a damaged one.
    """
    try:
        return load_model(path)
    except ValueError as error:
        raise UserError(str(error)) from error


def describe(name_or_path: str) -> dict[str, Any]:
    """Shape and parameter counts of a preset, or of a saved model, with what its experts do, layer by layer.

    The largest preset is counted without memory. Experts are judged by the atoms that the run at the path learnt from,
    or, where there is none, by one atom of each element that the model knows.
    """
    if name_or_path in PRESETS:
        return _about(name_or_path, preset_config(name_or_path))
    if name_or_path in COMPAT_PRESETS:
        return _about(name_or_path, COMPAT_PRESETS[name_or_path])
    if not Path(name_or_path).exists():
        raise UserError(f"'{name_or_path}' is neither a preset ({', '.join(_preset_names())}) nor a path to a model")
    model = open_matris(Path(name_or_path))
    about = _about(name_or_path, model.config)
    layers = expert_maps(model, atoms_of_run(Path(name_or_path), model.config.elements))
    return {**about, "experts": {layer["name"]: layer["statistics"] for layer in layers}}


def write_expert_map(name_or_path: str, path: Path) -> None:
    """Writes which experts the elements of a saved model use, and with what weight, as `.csv` or `.json`.

    Raises:
        UserError: a preset, which has no elements yet, no saved model, or a file with another ending.
    """
    if not Path(name_or_path).exists():
        raise UserError(f"'{name_or_path}' is no saved model; only a trained one has a map of experts worth a file")
    model = open_matris(Path(name_or_path))
    maps = {name: layer.router.expert_map() for name, layer in moe_layers(model)}
    try:
        write_expert_maps(maps, model.config.elements or range(1, ELEMENTS), path)
    except (ValueError, OSError) as error:
        raise UserError(f"--expert-map: {error}") from error


def _about(name: str, config: MatRISMoEConfig | MatRISConfig) -> dict[str, Any]:
    if isinstance(config, MatRISConfig):
        return describe_compat(name, config)
    return {"model": name, **count_parameters(config), "config": config.to_dict()}


def _preset_names() -> list[str]:
    return [*PRESETS, *COMPAT_PRESETS]


def _save(model: nn.Module, path: Path, about: Mapping[str, Any]) -> None:
    assert isinstance(model, (MatRISMoE, MatRIS))
    save_model(model, path, dict(about))
