"""How MatRIS-MoE, or the published MatRIS, is made from a configuration, saved, opened and looked at."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from janus_graph import AtomGraph, Structure, build_graph
from janus_moe import ELEMENTS
from janus_moe.statistics import write_expert_maps
from janus_train.config import STARTED, ModelConfig
from janus_train.data.frame import Frame
from janus_train.data.load import DataSet
from janus_train.data.statistics import Statistics
from janus_train.failure import UserError
from janus_train.recipes.matris_check import check_formulas
from janus_train.recipes.matris_compat import compat_model, describe_compat, set_compat_references
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
    is_matrix,
    is_table,
    load_model,
    preset_config,
    save_model,
    triton_formulas,
)
from matris_model.compat import PRESETS as COMPAT_PRESETS
from matris_model.compat import MatRIS, MatRISConfig

# What follows from the data is not for the configuration to say.
_FROM_DATA = ("tasks", "elements")
_CALIBRATION_FRAMES, _CALIBRATION_ATOMS = 200, 5000


def model_config(config: ModelConfig) -> MatRISMoEConfig:
    """The preset with the user's changes.

    Raises:
        UserError: no such preset or field, or values that do not fit together.
    """
    if config.preset == STARTED:
        raise UserError(f"model.preset={STARTED} is the shape of a model to start from, which is not opened here")
    if config.preset not in PRESETS:
        nearest = difflib.get_close_matches(config.preset, _preset_names(), n=1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"there are {', '.join(_preset_names())}"
        raise UserError(f"model.preset: no preset '{config.preset}'; {hint}")
    check_changes(config)
    try:
        return preset_config(config.preset, **config.changes)
    except ValueError as error:
        raise UserError(f"model: {error}") from error


def check_changes(config: ModelConfig) -> None:
    """Refuses fields that a MatRIS-MoE does not have, or values of another type.

    Raises:
        UserError: names the field, and the nearest there is.
    """
    fields = {f.name: f.type for f in dataclasses.fields(MatRISMoEConfig) if f.name not in _FROM_DATA}
    for name, value in config.changes.items():
        if name not in fields:
            nearest = difflib.get_close_matches(name, [*fields, "preset"], n=1, cutoff=0.5)
            hint = f"did you mean 'model.{nearest[0]}'?" if nearest else f"fields are {', '.join(fields)}"
            raise UserError(f"unknown key 'model.{name}'; {hint}")
        accepted = {"int": (int,), "float": (int, float), "bool": (bool,)}[str(fields[name])]
        if not isinstance(value, accepted) or (isinstance(value, bool) and fields[name] != "bool"):
            raise UserError(f"model.{name}: must be {fields[name]} (given: {value!r})")


def matris_recipe(config: ModelConfig, data: DataSet, statistics: Statistics, seed: int) -> Recipe:
    """A model for these data: their tasks and elements, reference energies and scales, experts of elements that have
    about as much to do as each other; random weights.
    """
    if config.preset in COMPAT_PRESETS:
        return compat_recipe(compat_model(config, data, statistics, seed))
    shape = model_config(config).replace(tasks=data.tasks, elements=data.elements)
    if data.has("magmoms") and "magnetic_moments" not in config.changes:
        shape = shape.replace(magnetic_moments=True)
    return moe_recipe(shape, config, statistics, seed, surroundings=partial(surroundings, data.train, shape))


def surroundings(frames: Sequence[Frame], shape: MatRISMoEConfig) -> AtomGraph:
    """Some training structures at random, the same in every run: enough to tell what is usual around atoms."""
    count = min(len(frames), _CALIBRATION_FRAMES)
    chosen: list[Structure] = []
    for place in np.random.default_rng(0).choice(len(frames), count, replace=False).tolist():
        if sum(map(len, chosen)) < _CALIBRATION_ATOMS:
            chosen.append(frames[place].structure)
    return build_graph(chosen, shape.cutoff, shape.near_cutoff)


@dataclass(frozen=True)
class Inheritance:
    """Weights that a model begins with.

    Attributes:
        inherit: puts them into a block of a model, or, given the model itself, into what is outside its blocks.
        dtype: they have.
    """

    inherit: Callable[[MatRISMoE, nn.Module], None]
    dtype: torch.dtype


def moe_recipe(
    shape: MatRISMoEConfig,
    config: ModelConfig,
    statistics: Statistics,
    seed: int,
    inheritance: Inheritance | None = None,
    surroundings: Callable[[], AtomGraph] | None = None,
) -> Recipe:
    """A MatRIS-MoE of a shape, and what can be done with it.

    Args:
        shape: tasks and elements are those of the run.
        config: how it computes, and how its experts settle.
        statistics: references, scales, and atoms of each element.
        seed: of the random weights.
        inheritance: other weights; none keeps random ones.
        surroundings: makes training structures that a model with random weights takes from what is usual around atoms.
    """
    inherit = None if inheritance is None else inheritance.inherit
    formulas = _formulas(config)
    run_block = checkpoint_block if config.checkpoint else call_block
    model = MatRISMoE(shape, seed, formulas, run_block, frequencies_of(statistics))
    if inheritance is not None:
        model.to(dtype=inheritance.dtype)  # nothing is rounded before the run says to what
        for module in (*model.blocks, model) if not model.references.is_meta else ():
            inheritance.inherit(model, module)
    elif surroundings is not None and not model.references.is_meta:
        model.calibrate(surroundings())
    set_references(model, statistics)
    return Recipe(
        model, shape.cutoff, shape.near_cutoff, save_matris, open_matris,
        before_step=ExpertsSettle(config.router, seed),
        expert_maps=expert_maps,
        sharding=matris_sharding(model, statistics, seed, inherit, surroundings),
        set_references=set_references,
        is_table=is_table,
        is_matrix=is_matrix,
        check=partial(check_formulas, model, formulas),
    )  # fmt: skip


def compat_recipe(model: MatRIS) -> Recipe:
    """A published MatRIS, and what can be done with it."""
    return Recipe(
        model, model.config.cutoff, model.config.near_cutoff, save_matris, open_matris,
        set_references=set_compat_references,
    )  # fmt: skip


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


def save_matris(model: nn.Module, path: Path, about: Mapping[str, Any]) -> None:
    """Writes a model into a directory, with plain values about it."""
    assert isinstance(model, (MatRISMoE, MatRIS))
    save_model(model, path, dict(about))
