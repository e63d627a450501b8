"""The training loop: steps, validation, checkpoints."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from janus_comm import Accounting, Communicator
from janus_train.checkpoint import Checkpoints
from janus_train.config import Config
from janus_train.data.ahead import ahead
from janus_train.data.batch import FrameSource
from janus_train.data.batching import epoch_batches
from janus_train.data.write import write_frames
from janus_train.display import Display, errors_table
from janus_train.evaluate import Evaluation, evaluate
from janus_train.failure import UserError
from janus_train.memory_errors import naming_the_batch
from janus_train.optim import learning_rate, set_learning_rate
from janus_train.recipes import ExpertMap, Recipe
from janus_train.run_log import RunLog
from janus_train.state import TrainingState
from janus_train.step import Prepared, StepResult, TrainingStep, clip_gradients
from janus_train.stopping import StopSignals
from janus_train.throughput import OperationsOf, Throughput
from janus_train.trial import try_largest_step
from janus_train.watching import has_ended_early, note_validation, notice_of, watched_value

# Mean error of the energy of starting weights above which their references are in doubt, eV/atom.
_SUSPICIOUS_START = 0.1


@dataclass(frozen=True, eq=False)
class Training:
    """Everything a run works with; what changes while it runs is in `state`.

    Attributes:
        config: the resolved configuration.
        recipe: the model and what can be done with it.
        step: how ranks share a step.
        state: what the steps change.
        train: frames to learn from.
        val: frames to judge by.
        world: all ranks.
        accounting: what this rank sent.
        device: where the model is.
        directory: the run directory.
        checkpoints: where the state is kept.
        stop: what asks the run to stop.
        display: what the person sees.
        log: what is written down; None on ranks that do not write.
        operations: counts those of a step.
        atoms: training atoms of each element, which the load of experts is counted with.
    """

    config: Config
    recipe: Recipe
    step: TrainingStep
    state: TrainingState
    train: FrameSource
    val: FrameSource
    world: Communicator
    accounting: Accounting
    device: torch.device
    directory: Path
    checkpoints: Checkpoints
    stop: StopSignals
    display: Display
    log: RunLog | None
    operations: OperationsOf
    atoms: np.ndarray

    @property
    def done(self) -> bool:
        """Whether there is nothing more to learn: all steps are done, or `watch.patience` is at its end."""
        progress = self.state.progress
        return progress.step >= self.config.run.max_steps or has_ended_early(progress, self.config.watch)


def run_steps(training: Training) -> bool:
    """Steps from where the state stands until `Training.done`, or to `run.stop_at_step`, with a checkpoint there.

    Returns whether a signal ended it before: with the step that all ranks were in when one was asked to stop.

    Raises:
        UserError: too many steps in a row had no finite gradient, or a batch that is too large for the memory.
    """
    config, progress = training.config.run, training.state.progress
    last = min(config.max_steps, config.stop_at_step or config.max_steps)
    began = time.monotonic() - progress.seconds
    window = Throughput()
    batches = ahead(_batches(training), lambda batch: training.step.prepare(training.train, batch.places.tolist()))
    asked = False
    if progress.step < last and not training.done:
        tried = try_largest_step(training.step, training.train, training.config, training.accounting)
        training.display.say(tried)
    if training.config.start.model is not None and progress.step == 0:
        _judge_the_start(training)
    while progress.step < last and not asked and not training.done:
        batch, prepared = next(batches)
        places, progress.epoch, progress.batch = batch.places, batch.epoch, batch.number
        lr = learning_rate(progress.step, config.max_steps, training.config.optim)
        training.recipe.before_step(training.state.model, progress.step)
        with naming_the_batch(training.train, places.tolist(), training.config.data, f"step {progress.step + 1}"):
            result = _step(training, places, prepared, lr)
        asked = result.stop
        progress.step += 1
        progress.seconds = time.monotonic() - began
        if training.log is not None:
            window.add(training.train, places, training.operations(prepared))
            rates = window.rates()
            training.display.step(progress.step, result.loss, rates["structures_per_s"])
            if progress.step % config.log_every == 0 or progress.step == last:
                training.log.write(_train_line(training, result, lr, rates))
        if progress.step % config.log_every == 0:
            window = Throughput()
        if progress.step % config.val_every == 0 or progress.step == config.max_steps:
            # In the same memory as what is being written, and no step would get on meanwhile anyway.
            training.checkpoints.wait()
            training.state.optimizer.zero_grad()  # whose memory the whole model may need
            validate(training)
            window = Throughput()
        if progress.step % config.checkpoint_every == 0 or progress.step == last or asked or training.done:
            training.checkpoints.save(training.state)
        training.checkpoints.check()
    training.checkpoints.wait()
    return asked and progress.step < last and not training.done


def validate(training: Training) -> Evaluation:
    """Errors of the mean of the weights on the validation frames; the best so far become the run's model file."""
    everything = range(len(training.val.frames))
    with training.state.mean.in_place(), naming_the_batch(training.val, everything, training.config.data, "validation"):
        return _validate_in_place(training)


def _judge_the_start(training: Training) -> None:
    """Errors of the starting weights before anything is changed; until a validation is better, they are the best."""
    found = validate(training)
    say = training.display.say
    say(f"errors of the starting weights on the validation frames:\n{errors_table(found.tasks)}")
    for task, errors in found.tasks.items():
        if (errors["energy_mae"] or 0.0) > _SUSPICIOUS_START:
            say(
                f"task {task}: energies are {1000 * errors['energy_mae']:.0f} meV/atom off. If its level of theory is "
                "not that of the starting weights, give its frames another task, or have its references fitted anew "
                f"with references.tasks.{task}.energies=fit"
            )


def _validate_in_place(training: Training) -> Evaluation:
    progress, loss, watch = training.state.progress, training.config.loss, training.config.watch
    predictions = training.step.predictions(training.val, tuple(loss.weights), training.config.data.batch_edges)
    found = evaluate(predictions, training.val, training.world)
    value = watched_value(watch.metric, found, loss)
    best = note_validation(progress, watch.metric, value, watch.min_delta)
    maps = training.recipe.expert_maps(training.state.model, training.atoms)
    model = training.step.whole_model() if best else None
    if training.log is not None:
        training.log.write(_validation_line(training, found, value, best, maps))
        training.display.validated(value)
        _say_validation(training, found, value, best)
    if best and _saved(training, model, {"step": progress.step, "validation": found.tasks}):
        progress.best_value, progress.best_step = value, progress.step
    return found


def _validation_line(
    training: Training, found: Evaluation, value: float, best: bool, maps: Sequence[ExpertMap]
) -> dict[str, Any]:
    progress, watch = training.state.progress, training.config.watch
    experts = {layer["name"]: layer["statistics"] for layer in maps}
    return {
        "kind": "val",
        "step": progress.step,
        "loss": found.loss(training.config.loss),
        "best": best,
        "watch": {
            "metric": watch.metric, "value": value, "better_step": progress.better_step,
            "no_better": progress.no_better, "notice": notice_of(progress, watch),
        },
        "tasks": found.tasks,
        **({"experts": experts} if experts else {}),
        "seconds": round(progress.seconds, 3),
    }  # fmt: skip


def _say_validation(training: Training, found: Evaluation, value: float, best: bool) -> None:
    progress, watch = training.state.progress, training.config.watch
    forces = "  ".join(
        f"{task} {1000 * errors['forces_mae']:.0f}"
        for task, errors in found.tasks.items()
        if errors["forces_mae"] is not None
    )
    watched = "" if watch.metric == "loss" else f", {watch.metric} {value:.4g}"
    loss = found.loss(training.config.loss)
    training.display.say(
        f"step {progress.step}: validation loss {loss:.4f}{watched}{' (best so far)' if best else ''}, force MAE in "
        f"meV/Å: {forces}"
    )
    notice = notice_of(progress, watch)
    if notice is not None and (progress.no_better % watch.plateau == 0 or has_ended_early(progress, watch)):
        training.display.say(notice)


def _saved(training: Training, model: nn.Module | None, about: dict[str, Any]) -> bool:
    """Whether the model, which the first rank has, could be written; known to all ranks."""
    reason = None
    if model is not None:
        try:
            training.recipe.save(model, training.directory, about)
        except OSError as error:
            reason = error.strerror or str(error)
            training.display.say(
                f"warning: the model of step {about['step']} cannot be written to {training.directory} ({reason}); the "
                "one before stays, training goes on, and the next validation is another try"
            )
    return training.world.gather_object(reason)[0] is None


@dataclass(frozen=True, eq=False)
class _StepBatch:
    """The frames of a step, and where the training stands when it is done."""

    places: np.ndarray
    epoch: int
    number: int


def _batches(training: Training) -> Iterator[_StepBatch]:
    """Batches from where the state stands, epoch after epoch."""
    config = training.config
    epoch, first = training.state.progress.epoch, training.state.progress.batch
    while True:
        batches = epoch_batches(
            training.train.edges, config.data.batch_edges, config.run.seed, epoch, training.train.draws
        )
        for number in range(first, len(batches)):
            yield _StepBatch(batches[number], epoch, number + 1)
        epoch, first = epoch + 1, 0


def _step(training: Training, places: np.ndarray, prepared: Prepared, lr: float) -> StepResult:
    state, config = training.state, training.config
    result = training.step.gradients(prepared, training.stop.name is not None)
    if result.finite:
        state.progress.skipped_in_a_row = 0
        clip_gradients(list(state.model.parameters()), result.grad_norm, config.optim.clip)
        set_learning_rate(state.optimizer, lr)
        state.optimizer.step()
        state.mean.update()
    else:
        _skip(training, places)
    return result


def _skip(training: Training, places: np.ndarray) -> None:
    """A step without a finite gradient is not taken; its structures are kept for the person to look at."""
    progress = training.state.progress
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    kept, frames = training.directory / "bad_batches.extxyz", [training.train.frames[place] for place in places]
    if training.log is not None:
        where = f"structures in {kept}"
        try:
            write_frames(kept, frames, {"step": progress.step + 1})
        except OSError as error:
            origins = ", ".join(frame.origin for frame in frames)
            where = f"{kept} cannot be written ({error.strerror}), structures: {origins}"
        training.display.say(f"step {progress.step + 1}: loss or gradient is not finite; step skipped, {where}")
    if progress.skipped_in_a_row >= training.config.run.max_bad_steps:
        raise UserError(
            f"{progress.skipped_in_a_row} steps in a row had no finite gradient; look at the structures in {kept}, "
            f"and try a lower optim.lr (now {training.config.optim.lr}) or optim.clip"
        )


def _train_line(training: Training, result: StepResult, lr: float, rates: Mapping[str, float]) -> dict[str, Any]:
    progress = training.state.progress
    accounting = training.accounting
    kinds = dict.fromkeys(kind for kind, _ in accounting.tallies)
    return {
        "kind": "train",
        "step": progress.step,
        "epoch": progress.epoch,
        "loss": result.loss,
        **{f"loss_{name}": value for name, value in result.terms.items()},
        "lr": lr,
        "grad_norm": result.grad_norm,
        "skipped": progress.skipped,
        **rates,
        "seconds": round(progress.seconds, 3),
        "memory_mb": round(_memory_mb(training.device)),
        "bytes_sent": {kind: count for kind in kinds if (count := accounting.total(kind).bytes_sent)},
    }


def _memory_mb(device: torch.device) -> float:
    """Most memory this process ever held: of the GPU where it computes there, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
