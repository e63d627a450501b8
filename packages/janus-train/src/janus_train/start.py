"""How a run takes up trained weights: what is frozen, and what energies of new data are measured against."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float64
from torch import nn

from janus_comm import Communicator
from janus_train.config import ReferencesConfig
from janus_train.data.batch import FrameSource
from janus_train.data.energy_rows import EnergyRows, element_counts
from janus_train.data.frame import Frame
from janus_train.data.statistics import Given, Statistics
from janus_train.failure import UserError
from janus_train.parameter_names import matches, require_matches
from janus_train.step import TrainingStep

# Frames of a task that its references are corrected on: a few numbers need no more.
_ENOUGH = 2000


class Cutoffs(Protocol):
    """How far a model looks, Å."""

    @property
    def cutoff(self) -> float:
        """Of edges."""
        ...

    @property
    def near_cutoff(self) -> float:
        """Of near edges."""
        ...


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Leaves the parameters with these patterns in their names as they are: no gradient, no optimiser state, no mean.

    Raises:
        UserError: a pattern that is in no name, or nothing left to train.
    """
    names = dict(model.named_parameters())
    require_matches(patterns, names, "start.freeze")
    for name, parameter in names.items():
        if any(matches(pattern, name) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in names.values()):
        raise UserError(f"start.freeze: {', '.join(patterns)} leave nothing to train; freeze less")


def tasks_to_correct(tasks: Sequence[str], given: Mapping[str, Given], config: ReferencesConfig) -> list[str]:
    """The tasks whose references are to be those that the starting weights leave least of.

    New tasks, and those that the user has fitted anew by name; unless a table or isolated atoms are asked for.
    """
    return [
        task
        for task in tasks
        if config.of(task).energies in ("auto", "fit") and (not given[task].kept or config.names_energies_of(task))
    ]


def corrected_references(
    statistics: Statistics,
    tasks: Sequence[str],
    corrected: Sequence[str],
    frames: Sequence[Frame],
    energies_of: Callable[[list[Frame]], Float64[np.ndarray, "frames"]],
) -> Statistics:
    """References of these tasks moved so that the model's energies are off by as little as can be, by least squares.

    The network says something of frames that it has not been trained on. Fitted to energies alone, references would
    count that twice. Where the compositions leave something open, all elements move alike.

    Args:
        statistics: of the data, which the model has the references of.
        tasks: names, in the order of their indices.
        corrected: those whose references are moved.
        frames: to train on.
        energies_of: what the model says of frames, eV.
    """
    references, residuals = statistics.references.copy(), statistics.residuals.copy()
    fits, warnings = list(statistics.fits), list(statistics.warnings)
    for task in corrected:
        index, own = tasks.index(task), _some(frames, task)
        if not own:
            continue
        rows = EnergyRows()
        for frame, predicted in zip(own, energies_of(own).tolist(), strict=True):
            assert frame.energy is not None
            rows.add(element_counts(frame.structure.atomic_numbers), frame.energy - predicted)
        shift = rows.fit({})
        references[index] += shift.energies
        residuals[index], fit = shift.residual, fits[index]
        assert fit is not None
        source = f"{fit.source}, moved by least squares on what the starting weights leave"
        moved = dataclasses.replace(shift, energies=references[index])
        fits[index] = dataclasses.replace(fit, source=source, fit=moved)
        if shift.open:
            warnings.append(
                f"task {task}: its compositions fix {shift.rank} of {len(shift.fitted)} moves of reference energies; "
                "what energies of other compositions are is a guess"
            )
    return dataclasses.replace(
        statistics, references=references, residuals=residuals, fits=tuple(fits), warnings=tuple(warnings)
    )


def energies_by(
    step: TrainingStep, recipe: Cutoffs, world: Communicator, budget: int
) -> Callable[[list[Frame]], Float64[np.ndarray, "frames"]]:
    """What the model of a step says of frames, the same on every rank. Every rank calls it with the same frames.

    Args:
        step: how ranks share the model.
        recipe: cutoffs of its graphs.
        world: all ranks.
        budget: edges of a pass.
    """

    def energies(frames: list[Frame]) -> Float64[np.ndarray, "frames"]:
        source = FrameSource(frames, recipe.cutoff, recipe.near_cutoff)
        found = np.zeros(len(frames))
        for place, prediction in step.predictions(source, ("energy",), budget):
            found[place] = prediction.energy
        return world.sum(torch.from_numpy(found)).numpy()

    return energies


def _some(frames: Sequence[Frame], task: str) -> list[Frame]:
    """Frames of a task with energies, all or evenly chosen ones."""
    labelled = [frame for frame in frames if frame.task == task and frame.has("energy")]
    return labelled[:: -(-len(labelled) // _ENOUGH)] if labelled else []
