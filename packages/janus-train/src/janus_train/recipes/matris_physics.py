"""The physics card of a saved MatRIS-MoE, in its directory and in its report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from janus_train.physics.card import CardSettings, physics_card, subject_of_frames
from janus_train.recipes.matris import open_matris
from janus_train.recipes.matris_inference import labelled_frames
from matris_model import MatRISCalculator


def write_physics_card(
    model_path: Path,
    paths: Sequence[Path] | None,
    task: str | None,
    picoseconds: float,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Computes the card in float64 and writes physics.json beside the model; a run's report is made again with it.

    Args:
        model_path: a run directory or a saved model.
        paths: prototypes and dimers are chosen among the compositions in these files; without files, among what
            validated the run, or else the bundled data set.
        task: of structures that name none.
        picoseconds: length of the runs at constant energy, one a task; none where 0.
        say: is told how it gets on.

    Raises:
        UserError: no such model or files, or tasks and elements the model does not know.
    """
    from janus_train.report import build_report

    model = open_matris(model_path)
    frames = labelled_frames(model, model_path, paths, task)
    # A little beyond the cutoff, so that the curve is seen to end.
    settings = CardSettings(picoseconds=picoseconds, reach=model.config.cutoff + 0.5)
    subjects = [
        subject_of_frames(
            name,
            MatRISCalculator(model, task=name, dtype=torch.float64),
            [frame for frame in frames if frame.task == name],
            settings,
        )
        for name in model.config.tasks
        if any(frame.task == name for frame in frames)
    ]
    card = physics_card(subjects, settings, say)
    directory = model_path if model_path.is_dir() else model_path.parent
    (directory / "physics.json").write_text(json.dumps(card) + "\n")
    if (directory / "config.yaml").exists():
        say(f"report {build_report(directory)}")
    return card
