"""A recipe: a model that can be trained, saved and opened again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

ExpertMap = dict[str, Any]
"""One MoE layer for the log and the report: `name`, `symbols`, `weights` [symbols][experts], `load` [experts], and
`statistics`: `max_over_mean`, `load_entropy`, `dead`, `gate_entropy`, `effective_experts` (see `janus_moe.statistics`).
"""


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
    """

    model: nn.Module
    cutoff: float
    near_cutoff: float
    save: Callable[[nn.Module, Path, Mapping[str, Any]], object]
    load: Callable[[Path], nn.Module]
    before_step: Callable[[nn.Module, int], None] = lambda model, step: None
    expert_maps: Callable[[nn.Module, np.ndarray], list[ExpertMap]] = lambda model, atoms_of_element: []
