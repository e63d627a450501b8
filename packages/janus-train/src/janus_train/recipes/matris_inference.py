"""Using a trained model on files: errors on labelled structures, predictions for any."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from janus_comm import SingleRank
from janus_train.config import KeyNames, load_config
from janus_train.data.batch import FrameSource
from janus_train.data.frame import LABELS, Frame, with_task_indices
from janus_train.data.load import bundled_frames, load_data
from janus_train.data.read import read_frames
from janus_train.data.write import write_frames
from janus_train.evaluate import evaluate, predict
from janus_train.failure import UserError
from janus_train.recipes.matris import open_matris
from matris_model import MatRISMoE
from matris_model.compat import MatRIS

# Edges of one pass: some 300 MB for the small presets.
_BUDGET = 20_000


def evaluate_files(
    model_path: Path, paths: Sequence[Path] | None, task: str | None, group_key: str | None = None
) -> dict[str, Any]:
    """Errors of a saved model on labelled files, per task, element and group.

    Without files: the frames that validated the run, else the validation part of the bundled data set.

    Args:
        model_path: a run directory or a saved model.
        paths: labelled files.
        task: of frames that name none.
        group_key: under which name files hold the group of a frame, such as config_type; None for `group`, or what the
            run read.

    Raises:
        UserError: no such model or files, frames without any label, or tasks and elements the model does not know.
    """
    model = open_matris(model_path)
    frames = labelled_frames(model, model_path, paths, task, group_key)
    source = FrameSource(frames, model.config.cutoff, model.config.near_cutoff)
    labels = [label for label in LABELS if any(frame.has(label) for frame in frames)]
    if not labels:
        raise UserError(f"{frames[0].origin} has no label ({', '.join(LABELS)}), nor has any other frame")
    properties = [label for label in labels if label != "magmoms" or model.config.magnetic_moments]
    predictions = predict(model, source, range(len(frames)), properties, _BUDGET)
    found = evaluate(predictions, source, SingleRank())
    return {"tasks": found.tasks, "elements": found.elements, "groups": found.groups}


def predict_file(model_path: Path, path: Path, output: Path, task: str | None) -> int:
    """Writes a file's structures with predicted energy, forces and stress; returns how many.

    Raises:
        UserError: the output exists already, or what `evaluate_files` refuses.
    """
    if output.exists():
        raise UserError(f"{output} exists; remove it or choose another --output")
    model = open_matris(model_path)
    frames = _with_tasks(model, read_frames(path, KeyNames(), default_task=""), task)
    source = FrameSource(frames, model.config.cutoff, model.config.near_cutoff)
    properties = ["energy", "forces", "stress"] + ["magmoms"] * model.config.magnetic_moments
    predicted = []
    for place, found in predict(model, source, range(len(source.frames)), properties, _BUDGET):
        frame = source.frames[place]
        predicted.append(
            Frame(
                frame.structure,
                frame.task,
                found.energy,
                found.forces,
                found.stress,
                found.magmoms,
                origin=frame.origin,
            )
        )
    write_frames(output, predicted, {"model": str(model_path)})
    return len(predicted)


def labelled_frames(
    model: MatRISMoE | MatRIS,
    model_path: Path,
    paths: Sequence[Path] | None,
    task: str | None,
    group_key: str | None = None,
) -> list[Frame]:
    """The frames of these files; without files those that validated the run, or else the bundled ones.

    Raises:
        UserError: files that cannot be read, or tasks and elements the model does not know.
    """
    saved = model_path / "config.yaml"
    frames: Sequence[Frame]
    if paths:
        keys = KeyNames() if group_key is None else KeyNames(group=group_key)
        frames = [frame for path in paths for frame in read_frames(path, keys, default_task="")]
    elif saved.exists():
        other = [] if group_key is None else [f"data.keys.group={json.dumps(group_key)}"]
        frames = load_data(load_config(saved, other)).val
    else:
        frames = [frame for frame in bundled_frames() if frame.split == "val"]
    return _with_tasks(model, frames, task)


def _with_tasks(model: MatRISMoE | MatRIS, frames: Sequence[Frame], task: str | None) -> list[Frame]:
    known = model.config.tasks
    if task is not None and task not in known:
        raise UserError(f"no task '{task}'; this model knows {', '.join(known)}")
    fallback = task or (known[0] if len(known) == 1 else None)
    named = []
    for frame in frames:
        name = frame.task if frame.task in known else fallback
        if name is None:
            says = f"task '{frame.task}', which this model does not know" if frame.task else "no task"
            raise UserError(f"{frame.origin} has {says}; choose --task from {', '.join(known)}")
        try:
            model.check_elements(set(frame.structure.atomic_numbers.tolist()))
        except ValueError as error:
            raise UserError(f"{frame.origin}: {error}") from error
        named.append(dataclasses.replace(frame, task=name))
    return with_task_indices(named, known)
