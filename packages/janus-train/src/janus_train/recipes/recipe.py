"""A recipe: a model that can be trained, saved and opened again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from janus_train.config import ModelConfig

if TYPE_CHECKING:
    from janus_train.config import StartConfig
    from janus_train.data.load import DataSet
    from janus_train.data.statistics import Given, Statistics
    from janus_train.plan.shape import ModelShape

ExpertMap = dict[str, Any]
"""One MoE layer for the log and the report: `name`, `symbols`, `weights` [symbols][experts], `load` [experts], and
`statistics`: `max_over_mean`, `load_entropy`, `dead`, `gate_entropy`, `effective_experts` (see `janus_moe.statistics`).
"""

Region = tuple[slice, ...]
"""A box of a tensor."""


@dataclass(frozen=True, eq=False)
class Sharding:
    """What sharing a model between the ranks of a unit needs to know of it.

    The model is called as `model(graph, properties, halo, run_block, group)` then, as `matris_model.MatRISMoE` is: with
    what brings the rows of neighbours that other ranks own, what runs its blocks, and what groups rows by element for
    its experts.

    Attributes:
        blocks: modules that are called one after the other; their weights come and go together.
        rows: what the layers of experts see, in the order of the model's modules: "atoms" or "edges".
        experts: in each of these layers.
        expert_hidden: hidden units of each expert.
        width: features of their rows.
        initialize: fills a block, or, given the model, what is outside its blocks. For models on the meta device.
        whole: a model of the same shape on the meta device, to be given all its weights.
        read: a box of one of the tensors that `Recipe.save` wrote, by directory and name.
        shape: what memory is planned from, given the terms of the loss.
        replicated: whether every rank keeps the parameter of this name whole: those of routers, which the host reads.
    """

    blocks: Sequence[nn.Module]
    rows: Sequence[str]
    experts: int
    expert_hidden: int
    width: int
    initialize: Callable[[nn.Module], None]
    whole: Callable[[], nn.Module]
    read: Callable[[Path, str, Region], Tensor]
    shape: Callable[[Sequence[str]], ModelShape]
    replicated: Callable[[str], bool]


@dataclass(frozen=True, eq=False)
class Recipe:
    """Everything the trainer needs to know of a model.

    Attributes:
        model: the parameters, and a `janus_graph.Potential`: called with a graph and property names it gives
            `Properties`, differentiable where gradients are enabled.
        cutoff: edges its graphs need, Å.
        near_cutoff: near edges its graphs need, Å.
        save: writes a model into a directory, with plain values about it.
        load: opens what `save` wrote.
        before_step: what the model does before each training step, given the number of the step (the first is 0); the
            same on every rank, and after a resume.
        expert_maps: what the experts do, given how many atoms each element has; none for models without.
        sharding: how ranks of a unit can share it; None for models that only come whole.
        set_references: gives the model other reference energies and scales.
        is_table: whether the parameter of a name has rows for elements or tasks, which must not fade while unused.
        is_matrix: whether the parameter of a name is a matrix, or a stack of matrices, from features to features;
            None where nobody knows.
        check: compares what computes fast on a device with what computes plainly; raises `UserError` where they differ.
        notes: what a person should know of how the model was made.
    """

    model: nn.Module
    cutoff: float
    near_cutoff: float
    save: Callable[[nn.Module, Path, Mapping[str, Any]], object]
    load: Callable[[Path], nn.Module]
    before_step: Callable[[nn.Module, int], None] = lambda model, step: None
    expert_maps: Callable[[nn.Module, np.ndarray], list[ExpertMap]] = lambda model, atoms_of_element: []
    sharding: Sharding | None = None
    set_references: Callable[[nn.Module, Statistics], None] = lambda model, statistics: None
    is_table: Callable[[str], bool] = lambda name: "router" in name
    is_matrix: Callable[[str], bool] | None = None
    check: Callable[[torch.device], None] = lambda device: None
    notes: Sequence[str] = ()


RecipeMaker = Callable[[ModelConfig, "DataSet", "Statistics", int], Recipe]
"""Makes a recipe from the model section, the data, their statistics and a seed."""


@dataclass(frozen=True, eq=False)
class Start:
    """Trained weights that a run begins with.

    Attributes:
        tasks: names of the tasks that stay, in the order of their indices; tasks of the data come behind them.
        elements: atomic numbers that stay known; empty: all.
        given: references and scales that tasks bring along, by name, given the tasks of the run: their own, or those of
            the task that a new one begins as.
        make_recipe: makes the model of the run with these weights.
    """

    tasks: tuple[str, ...]
    elements: tuple[int, ...]
    given: Callable[[Sequence[str]], Mapping[str, Given]]
    make_recipe: RecipeMaker


StartOpener = Callable[["StartConfig", bool], Start]
"""Opens what a run starts from, given the section `start`, and whether ranks will share the model."""
