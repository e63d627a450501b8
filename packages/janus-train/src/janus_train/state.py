"""What a training changes as it goes on: everything that makes its trajectory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from janus_train.moving_mean import MovingMean


@dataclass
class Progress:
    """Where a training stands.

    Attributes:
        step: optimiser steps done, skipped ones too.
        epoch: which pass over the data the next step belongs to.
        batch: which batch of that pass it is.
        watched: what validations are judged by, `watch.metric`; empty before the first one.
        best_value: its lowest value so far, whose model was saved; None before the first one.
        best_step: where it was.
        better_value: its value when it was last lower by more than `watch.min_delta`; None before the first one.
        better_step: where that was.
        no_better: validations in a row since then.
        skipped: steps that had no finite gradient.
        skipped_in_a_row: of those, the latest without a good one between.
        seconds: time spent, over all starts.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    watched: str = ""
    best_value: float | None = None
    best_step: int = 0
    better_value: float | None = None
    better_step: int = 0
    no_better: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Portion:
    """Which part of a whole tensor a rank holds: a box as large as the tensor it has, maybe empty.

    Attributes:
        shape: of the whole.
        offsets: where this rank's part begins in it.
    """

    shape: tuple[int, ...]
    offsets: tuple[int, ...]


@dataclass
class TrainingState:
    """Everything that makes the trajectory.

    Attributes:
        model: the weights, or this rank's parts of them.
        mean: their running mean.
        optimizer: its moments.
        progress: where it stands.
        portions: which part of a parameter this rank holds, by name; parameters left out are whole on every rank.
    """

    model: nn.Module
    mean: MovingMean
    optimizer: torch.optim.Optimizer
    progress: Progress = field(default_factory=Progress)
    portions: Mapping[str, Portion] = field(default_factory=dict)
