"""A run from its configuration to its report, and how it is taken up again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from janus_comm import Accounting, Communicator, Counted, agree, launch, make_mesh
from janus_train.checkpoint import Checkpoints, load_checkpoint, newest_checkpoint
from janus_train.config import Config, ModelConfig, load_config
from janus_train.data.batch import FrameSource
from janus_train.data.duplicates import repeat_warnings
from janus_train.data.load import DataSet, coverage, data_fingerprint, load_data
from janus_train.data.sizes import measure_stores
from janus_train.data.statistics import Statistics, fit_statistics
from janus_train.display import Display, coverage_table, errors_table, make_display
from janus_train.evaluate import Evaluation, evaluate
from janus_train.failure import UserError
from janus_train.loop import Training, run_steps
from janus_train.metrics import MetricsLog
from janus_train.optim import MovingMean, make_optimizer
from janus_train.rank_log import rank_log
from janus_train.recipes import Recipe
from janus_train.run_directory import Job, choose_directory, job_of, write_about
from janus_train.state import TrainingState
from janus_train.stopping import Stopped, StopSignals
from janus_train.ways import make_step

T = TypeVar("T")

# Sets of at most so many frames are looked through for frames that are there twice.
_LOOKED_THROUGH = 1_000_000

RecipeMaker = Callable[[ModelConfig, DataSet, Statistics, int], Recipe]
"""Makes a recipe from the model section, the data, their statistics and a seed."""


def train(config: Config, make_recipe: RecipeMaker) -> Path:
    """A whole run: data, model, steps, report. Returns the run directory.

    Called on every rank that a launcher started, or on one without it. Where the launcher starts the same job again,
    after a failure, the run that it had begun is taken up.

    Raises:
        UserError: what the user can mend, on every rank.
        LaunchError: a mesh that does not fit the launched ranks, on every rank.
        Stopped: a signal asked the run to stop, on every rank.
    """
    return _run(config, make_recipe, resumed=None)


def resume(directory: Path, overrides: Sequence[str], make_recipe: RecipeMaker) -> Path:
    """Goes on with a run from its newest checkpoint, with its own configuration and these settings on top.

    Raises:
        UserError: no run or no checkpoint there, or data that have changed since.
        Stopped: a signal asked the run to stop, on every rank.
    """
    saved = directory / "config.yaml"
    if not saved.exists():
        raise UserError(f"no run in {directory} (no config.yaml there); 'janus-train train' starts one")
    config = load_config(saved, ["run.stop_at_step=null", *overrides, f"run.dir={json.dumps(str(directory))}"])
    return _run(config, make_recipe, resumed=directory)


def _run(config: Config, make_recipe: RecipeMaker, resumed: Path | None) -> Path:
    with StopSignals() as stop, launch(config.run.device, config.run.timeout, config.run.checked) as launched:
        accounting = Accounting()
        world = Counted(launched.world, accounting)
        mesh = make_mesh(world, config.mesh.replica, config.mesh.unit)
        data, statistics, recipe = _agreed(world, lambda: _prepare(config, make_recipe))
        torch.use_deterministic_algorithms(config.run.deterministic)
        # One process looks for the edges of stores that nobody has looked for yet; the others find them there.
        _agreed(world, lambda: _measured(data, recipe) if world.rank == 0 else True)
        train = FrameSource(data.train, recipe.cutoff, recipe.near_cutoff, data.draws)
        notes: list[str] = []
        step = make_step(config, recipe, train, mesh, launched.device, accounting, notes.append)
        model = recipe.model
        state = TrainingState(
            model, MovingMean(model, config.optim.ema_decay), make_optimizer(model, config.optim),
            portions=step.portions,
        )  # fmt: skip
        job = job_of(os.environ)
        directory, checkpoint = _where(world, config, job, resumed)
        if checkpoint is not None:
            _agreed(world, lambda: _take_up(directory, checkpoint, data, state, world.rank))
        if world.rank == 0:
            write_about(directory, config, job, None if state.progress.step else (data, statistics))
        display = make_display(world.rank, config.run.max_steps, state.progress.step)
        checkpoints = Checkpoints(
            directory / "checkpoints", launched.world, config.run.keep_checkpoints,
            config.run.checkpoint_in_background, display.say,
        )  # fmt: skip
        training = Training(
            config, recipe, step, state,
            train=train,
            val=FrameSource(data.val, recipe.cutoff, recipe.near_cutoff),
            world=world, accounting=accounting, device=launched.device, directory=directory,
            checkpoints=checkpoints, stop=stop, display=display, atoms=statistics.atoms,
        )  # fmt: skip
        with rank_log(directory, world.rank), training.display, checkpoints:
            _greet(training, data, statistics)
            for note in notes:
                training.display.say(note)
            stopped = run_steps(training)
            if state.progress.step >= config.run.max_steps:
                _finish(training, statistics)
        world.barrier()
    return _ended(directory, state.progress.step, config, stopped, display)


def _ended(directory: Path, step: int, config: Config, stopped: bool, display: Display) -> Path:
    go_on = f"stopped at step {step}; go on with: janus-train resume {directory}"
    if stopped:
        raise Stopped(f"asked by a signal, {go_on}")
    if step < config.run.max_steps:
        display.say(go_on)
    return directory


def _agreed(world: Communicator, prepare: Callable[[], T]) -> T:
    """What `prepare` gives, if it gives it on every rank; else its error, on every rank."""
    error, value = None, None
    try:
        value = prepare()
    except Exception as raised:  # noqa: BLE001  it is raised again, here and on all other ranks
        error = raised
    agree(world, error)
    assert value is not None
    return value


def _prepare(config: Config, make_recipe: RecipeMaker) -> tuple[DataSet, Statistics, Recipe]:
    data = load_data(config)
    statistics = fit_statistics(data.train, data.tasks)
    # A model that ranks share is made block by block, where each keeps its part; until then it has no memory.
    with torch.device("meta") if config.mesh.unit > 1 else nullcontext():
        recipe = make_recipe(config.model, data, statistics, config.run.seed)
    recipe.model.to(dtype=getattr(torch, config.run.dtype))
    return data, statistics, recipe


def _measured(data: DataSet, recipe: Recipe) -> bool:
    for frames in (data.train, data.val):
        measure_stores(frames, recipe.cutoff, recipe.near_cutoff)
    return True


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


def _take_up(directory: Path, checkpoint: Path, data: DataSet, state: TrainingState, rank: int) -> bool:
    saved = json.loads((directory / "data.json").read_text())
    if saved["fingerprint"] != data_fingerprint(data):
        raise UserError(
            f"the data have changed since the run in {directory} began (checksums differ); give it the same files, or "
            "start a new run with 'janus-train train'"
        )
    load_checkpoint(checkpoint, state, rank)
    return True


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
    say(coverage_table(coverage(data)))
    for warning in statistics.warnings:
        say(f"warning: {warning}")
    if training.talks:
        for warning in _repeats(data):
            say(f"warning: {warning}")
        MetricsLog(training.directory / "metrics.jsonl").forget_after(state.progress.step)
    if state.progress.step:
        say(f"resuming at step {state.progress.step}")


def _repeats(data: DataSet) -> list[str]:
    if len(data.train) > _LOOKED_THROUGH:
        return []  # minutes of sorting, which check-data takes
    return repeat_warnings(data.train, data.val)


def _finish(training: Training, statistics: Statistics) -> None:
    """Judges the model file as a user would get it, and writes the report."""
    from janus_train.report import build_report

    training.step.open_saved(training.directory)
    weights = tuple(training.config.loss.weights)
    predictions = training.step.predictions(training.val, weights, training.config.data.batch_edges)
    found = evaluate(predictions, training.val, training.world, statistics.references)
    layers = training.recipe.expert_maps(training.state.model, statistics.atoms)
    if not training.talks:
        return
    directory, progress = training.directory, training.state.progress
    _write_evaluation(directory, found, progress.best_step)
    (directory / "experts.json").write_text(json.dumps({"layers": layers}))
    report = build_report(directory)
    say = training.display.say
    say(f"\nvalidation errors of the model of step {progress.best_step}:\n{errors_table(found.tasks)}\n")
    say(f"{progress.step} steps in {progress.seconds / 60:.1f} min, {progress.skipped} skipped")
    say(f"model   {directory / 'model.safetensors'}\nreport  {report}")


def _write_evaluation(directory: Path, found: Evaluation, step: int) -> None:
    content = {"split": "val", "step": step, "tasks": found.tasks, "elements": found.elements}
    (directory / "evaluation.json").write_text(json.dumps(content, indent=2) + "\n")
    arrays: dict[str, Any] = dict(found.parity)
    np.savez_compressed(directory / "parity.npz", **arrays)
