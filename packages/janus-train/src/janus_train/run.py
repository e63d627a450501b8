"""A run from its configuration to its report, and how it is taken up again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from janus_comm import Accounting, Communicator, Counted, agree, launch, make_mesh
from janus_train.checkpoint import Checkpoints, load_checkpoint, newest_checkpoint
from janus_train.config import Config, load_config
from janus_train.data.batch import FrameSource
from janus_train.data.duplicates import repeat_warnings
from janus_train.data.load import DataSet, Known, coverage, data_fingerprint, load_data, split_warnings
from janus_train.data.reference_table import references_text
from janus_train.data.sizes import measure_stores
from janus_train.data.statistics import Given, Statistics, fit_statistics, require_determined, undetermined_frames
from janus_train.display import Display, coverage_table, errors_table, make_display
from janus_train.evaluate import Evaluation, evaluate
from janus_train.failure import UserError
from janus_train.loop import Training, run_steps
from janus_train.loss import make_loss
from janus_train.moving_mean import MovingMean
from janus_train.optim import make_optimizer
from janus_train.rank_log import rank_log
from janus_train.recipes import Recipe, RecipeMaker, Start, StartOpener
from janus_train.run_directory import Job, choose_directory, job_of, statistics_of_run, write_about
from janus_train.run_log import RunLog
from janus_train.sinks import check_sinks, open_sinks
from janus_train.start import corrected_references, energies_by, freeze, tasks_to_correct
from janus_train.state import TrainingState
from janus_train.stopping import Stopped, StopSignals
from janus_train.throughput import operations_counter
from janus_train.watching import check_watched
from janus_train.ways import make_step

T = TypeVar("T")

# Sets of at most so many frames are looked through for frames that are there twice.
_LOOKED_THROUGH = 1_000_000


def train(config: Config, make_recipe: RecipeMaker, open_start: StartOpener | None = None) -> Path:
    """A whole run: data, model, steps, report. Returns the run directory.

    Called on every rank that a launcher started, or on one without it. Where the launcher starts the same job again,
    after a failure, the run that it had begun is taken up.

    Args:
        config: of the run.
        make_recipe: makes the model, with random weights.
        open_start: opens the model that `start.model` names; None for models that only start from random weights.

    Raises:
        UserError: what the user can mend, on every rank.
        LaunchError: a mesh that does not fit the launched ranks, on every rank.
        Stopped: a signal asked the run to stop, on every rank.
    """
    return _run(config, _Makers(make_recipe, open_start), resumed=None)


def resume(
    directory: Path, overrides: Sequence[str], make_recipe: RecipeMaker, open_start: StartOpener | None = None
) -> Path:
    """Goes on with a run from its newest checkpoint, with its own configuration and these settings on top.

    Raises:
        UserError: no run or no checkpoint there, or data that have changed since.
        Stopped: a signal asked the run to stop, on every rank.
    """
    saved = directory / "config.yaml"
    if not saved.exists():
        raise UserError(f"no run in {directory} (no config.yaml there); 'janus-train train' starts one")
    config = load_config(saved, ["run.stop_at_step=null", *overrides, f"run.dir={json.dumps(str(directory))}"])
    return _run(config, _Makers(make_recipe, open_start), resumed=directory)


@dataclass(frozen=True)
class _Makers:
    """What makes the model: anew, or from trained weights."""

    recipe: RecipeMaker
    start: StartOpener | None


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What a run begins with, on every rank."""

    data: DataSet
    statistics: Statistics
    recipe: Recipe
    given: Mapping[str, Given]


def _run(config: Config, makers: _Makers, resumed: Path | None) -> Path:
    with StopSignals() as stop, launch(config.run.device, config.run.timeout, config.run.checked) as launched:
        accounting = Accounting()
        world = Counted(launched.world, accounting)
        mesh = make_mesh(world, config.mesh.replica, config.mesh.unit)
        ready = _agreed(world, lambda: _prepare(config, makers, resumed))
        data, statistics, recipe = ready.data, ready.statistics, ready.recipe
        torch.use_deterministic_algorithms(config.run.deterministic)
        # One process looks for the edges of stores that nobody has looked for yet; the others find them there.
        _agreed(world, lambda: _measure_stores(data, recipe) if world.rank == 0 else None)
        train = FrameSource(data.train, recipe.cutoff, recipe.near_cutoff, data.draws)
        _agreed(world, lambda: recipe.check(launched.device))
        loss = make_loss(config.loss, data.tasks)
        notes: list[str] = []
        step = make_step(config, recipe, loss, train, mesh, launched.device, accounting, notes.append)
        model = recipe.model
        optimizer = make_optimizer(model, config.optim, recipe.is_table, recipe.is_matrix, step.on_matrices)
        mean = MovingMean(model, config.optim.ema_decay)
        state = TrainingState(model, mean, optimizer, portions=step.portions)
        job = job_of(os.environ)
        directory, checkpoint = _where(world, config, job, resumed)
        if checkpoint is not None:
            statistics = _agreed(world, lambda: _take_up(directory, checkpoint, ready, state, world.rank))
        elif ready.given:
            energies = energies_by(step, recipe, world, config.data.batch_edges)
            corrected = tasks_to_correct(data.tasks, ready.given, config.references)
            statistics = corrected_references(statistics, data.tasks, corrected, data.train, energies)
            recipe.set_references(model, statistics)
        if world.rank == 0:
            write_about(directory, config, job, None if state.progress.step else (data, statistics))
        display = make_display(world.rank, config.run.max_steps, state.progress.step)
        log = _agreed(world, lambda: _open_log(directory, config, state, display) if world.rank == 0 else None)
        checkpoints = Checkpoints(
            directory / "checkpoints", launched.world, config.run.keep_checkpoints,
            config.run.checkpoint_in_background, display.say,
        )  # fmt: skip
        training = Training(
            config, recipe, step, state,
            train=train,
            val=FrameSource(data.val, recipe.cutoff, recipe.near_cutoff),
            world=world, accounting=accounting, device=launched.device, directory=directory,
            checkpoints=checkpoints, stop=stop, display=display, log=log,
            operations=operations_counter(recipe.sharding, tuple(config.loss.weights)), atoms=statistics.atoms,
        )  # fmt: skip
        with rank_log(directory, world.rank), training.display, log or nullcontext(), checkpoints:
            _greet(training, data, statistics)
            for note in notes:
                training.display.say(note)
            stopped = run_steps(training)
            if training.done:
                _finish(training, statistics)
        world.barrier()
    go_on = f"stopped at step {state.progress.step}; go on with: janus-train resume {directory}"
    if stopped:
        raise Stopped(f"asked by a signal, {go_on}")
    if not training.done:
        display.say(go_on)
    return directory


def _open_log(directory: Path, config: Config, state: TrainingState, display: Display) -> RunLog:
    """The log up to the step that the run goes on from, and the sinks that the configuration asks for.

    A run that begins forgets lines of step 0, too: it will validate its starting weights again.
    """
    open_sinks_with = partial(open_sinks, config.watch, directory, config.model_dump(mode="json"))
    return RunLog(directory / "metrics.jsonl", state.progress.step or -1, open_sinks_with, display.say)


def _agreed(world: Communicator, prepare: Callable[[], T]) -> T:
    """What `prepare` gives, if it gives it on every rank; else its error, on every rank."""
    try:
        value = prepare()
    except Exception as error:
        agree(world, error)
        raise
    agree(world, None)
    return value


def _prepare(config: Config, makers: _Makers, resumed: Path | None) -> _Prepared:
    check_sinks(config.watch)
    start = _open_start(config, makers.start, resumed)
    data = load_data(config, None if start is None else Known(start.tasks, start.elements))
    check_watched(config.watch.metric, data.val, config.loss.weights)
    if unknown := [task for task in config.references.tasks if task not in data.tasks]:
        raise UserError(f"references.tasks: there is no task '{unknown[0]}'; there are {', '.join(data.tasks)}")
    given = {} if start is None else start.given(data.tasks)
    statistics = fit_statistics(data.train, data.tasks, config.references, given)
    unknown_energies = undetermined_frames(data.val, statistics, data.tasks)
    statistics = replace(statistics, warnings=statistics.warnings + unknown_energies)
    # In the bundled data set ions are neutral together, which leaves one energy open that no structure asks for.
    if config.data.train is not None:
        require_determined(statistics, data.tasks, config.references)
    make_recipe = makers.recipe if start is None else start.make_recipe
    # A model that ranks share is made block by block, where each keeps its part; until then it has no memory.
    with torch.device("meta") if config.mesh.unit > 1 else nullcontext():
        recipe = make_recipe(config.model, data, statistics, config.run.seed)
    recipe = _rounded(recipe, config)
    freeze(recipe.model, config.start.freeze)
    return _Prepared(data, statistics, recipe, given)


def _rounded(recipe: Recipe, config: Config) -> Recipe:
    """The model in the precision of the run."""
    before, dtype = next(recipe.model.parameters()).dtype, getattr(torch, config.run.dtype)
    recipe.model.to(dtype=dtype)
    if before.itemsize <= dtype.itemsize:
        return recipe
    note = f"weights are rounded from {before} to {dtype}; run.dtype=float64 keeps them as they are"
    return replace(recipe, notes=(*recipe.notes, note.replace("torch.", "")))


def _open_start(config: Config, opener: StartOpener | None, resumed: Path | None) -> Start | None:
    """The weights that the run starts from. What is resumed has the shape of its own model file, if there is one yet,
    and does not need the old one any more.
    """
    if config.start.model is None:
        return None
    if opener is None:
        raise UserError("start.model: this model only starts from random weights; leave start.* out")
    shared = config.mesh.unit > 1
    if resumed is not None and (resumed / "model.json").exists():
        try:
            return opener(config.start.model_copy(update={"model": resumed, "elements": {}}), shared)
        except UserError:
            pass  # killed while it was written
    return opener(config.start, shared)


def _measure_stores(data: DataSet, recipe: Recipe) -> None:
    for frames in (data.train, data.val):
        measure_stores(frames, recipe.cutoff, recipe.near_cutoff)


def _where(world: Communicator, config: Config, job: Job, resumed: Path | None) -> tuple[Path, Path | None]:
    """The run directory, and the checkpoint to begin with; the first rank looks for all, so that all see the same."""
    directory, begun = (resumed, True) if resumed is not None else choose_directory(world, config, job)
    checkpoint: Path | None = None
    error: UserError | None = None
    if world.rank == 0 and begun:
        try:
            checkpoint = newest_checkpoint(directory / "checkpoints")
        except UserError as raised:
            error = raised if resumed is not None else None  # else it was killed before there was one
    agree(world, error)
    return directory, world.gather_object(checkpoint)[0]


def _take_up(directory: Path, checkpoint: Path, ready: _Prepared, state: TrainingState, rank: int) -> Statistics:
    saved = json.loads((directory / "data.json").read_text())
    if saved["fingerprint"] != data_fingerprint(ready.data):
        raise UserError(
            f"the data have changed since the run in {directory} began (checksums differ); give it the same files, or "
            "start a new run with 'janus-train train'"
        )
    load_checkpoint(checkpoint, state, rank)
    return statistics_of_run(saved, ready.data.tasks, ready.statistics)


def _greet(training: Training, data: DataSet, statistics: Statistics) -> None:
    portions = training.step.portions
    parameters = sum(
        math.prod(portions[name].shape) if name in portions else parameter.numel()
        for name, parameter in training.recipe.model.named_parameters()
    )
    config, state = training.config, training.state
    say = training.display.say
    source = "the bundled data set" if config.data.train is None else ", ".join(map(str, config.data.train))
    say(f"run {training.directory}: {config.model.preset}, {parameters:,} parameters, {config.run.dtype}, "
        f"{training.world.size} rank(s), {source}")  # fmt: skip
    for note in training.recipe.notes if not state.progress.step else ():
        say(note)
    say(coverage_table(coverage(data)))
    say(references_text(statistics, data.tasks))
    for warning in statistics.warnings:
        say(f"warning: {warning}")
    for warning in (*split_warnings(data, config.data), *_repeats(data)) if training.log is not None else ():
        say(f"warning: {warning}")
    if state.progress.step:
        say(f"resuming at step {state.progress.step}")


def _repeats(data: DataSet) -> list[str]:
    if len(data.train) > _LOOKED_THROUGH:
        return []  # minutes of sorting, which check-data takes
    return repeat_warnings(data.train, data.val)


def _finish(training: Training, statistics: Statistics) -> None:
    """Judges the model file as a user would get it, and writes the report."""
    from janus_train.report import build_report

    progress, watch = training.state.progress, training.config.watch
    if progress.best_value is None:
        watched = "loss" if watch.metric == "loss" else f"loss and {watch.metric}"
        raise UserError(
            f"after {progress.step} steps there is no model in {training.directory}: no validation had a finite "
            f"{watched}, or none of its models could be written; look at metrics.jsonl, and try a lower optim.lr"
        )
    training.step.open_saved(training.directory)
    weights = tuple(training.config.loss.weights)
    predictions = training.step.predictions(training.val, weights, training.config.data.batch_edges)
    found = evaluate(predictions, training.val, training.world, statistics.references)
    layers = training.recipe.expert_maps(training.state.model, statistics.atoms)
    if training.log is None:
        return
    directory = training.directory
    _write_evaluation(directory, found, progress.best_step)
    (directory / "experts.json").write_text(json.dumps({"layers": layers}))
    report = build_report(directory)
    say = training.display.say
    say(f"\nvalidation errors of the model of step {progress.best_step}:\n{errors_table(found.tasks)}\n")
    say(f"{progress.step} steps in {progress.seconds / 60:.1f} min, {progress.skipped} skipped")
    say(f"model   {directory / 'model.safetensors'}\nreport  {report}")


def _write_evaluation(directory: Path, found: Evaluation, step: int) -> None:
    content = {
        "split": "val", "step": step, "tasks": found.tasks, "elements": found.elements, "groups": found.groups
    }  # fmt: skip
    (directory / "evaluation.json").write_text(json.dumps(content, indent=2) + "\n")
    arrays: dict[str, Any] = dict(found.parity)
    np.savez_compressed(directory / "parity.npz", **arrays)
