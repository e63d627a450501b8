"""The largest step of a run: which it is, and whether there is memory for it, before the first one."""

from __future__ import annotations

import numpy as np

from janus_comm import Accounting
from janus_train.config import Config
from janus_train.data.batch import FrameSource
from janus_train.data.batching import epoch_batches
from janus_train.memory_errors import naming_the_batch
from janus_train.step import TrainingStep


def try_largest_step(step: TrainingStep, source: FrameSource, config: Config, accounting: Accounting) -> str:
    """Computes the gradient of that step of the first epoch which has most edges, and drops it. Every rank calls it.

    Where there is too little memory for a step it shows now, and not in hour three. Nothing of the run changes: weights
    stay, no random number is drawn, and what is sent is not counted. Returns what was tried, for a person.

    Raises:
        UserError: there is too little memory; it names the structures and what to set.
    """
    places = largest_step(source, config)
    with naming_the_batch(source, places, config.data, "the largest step"), accounting.unrecorded():
        step.gradients(step.prepare(source, places))
    atoms, edges = int(source.atoms[places].sum()), int(source.edges[places].sum())
    return f"largest step tried: {len(places)} structures, {atoms:,} atoms, {edges:,} edges"


def largest_step(source: FrameSource, config: Config) -> list[int]:
    """The frames of that step of the first epoch which has most edges; of one pass, where steps have several."""
    batches = epoch_batches(source.edges, config.data.batch_edges, config.run.seed, 0, source.draws)
    ranks = config.mesh.replica * config.mesh.unit
    if config.data.pass_edges is not None and config.data.pass_edges * ranks < config.data.batch_edges:
        batches = epoch_batches(source.edges, config.data.pass_edges * ranks, config.run.seed, 0, source.draws)
    largest: np.ndarray = max(batches, key=lambda batch: int(source.edges[batch].sum()))
    places: list[int] = largest.tolist()
    return places
