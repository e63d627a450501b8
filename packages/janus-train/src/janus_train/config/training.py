"""How to learn: the loss, the optimiser, the mesh of ranks, the run itself."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from janus_train.config.section import Section


class TaskLoss(Section):
    """Factors on the weights of the loss terms for the frames of one task; zero leaves them out."""

    energy: float = Field(default=1.0, ge=0, description="on loss.energy")
    forces: float = Field(default=1.0, ge=0, description="on loss.forces")
    stress: float = Field(default=1.0, ge=0, description="on loss.stress")
    magmoms: float = Field(default=1.0, ge=0, description="on loss.magmoms")


class LossConfig(Section):
    """Weights of the loss terms; zero leaves a term out."""

    energy: float = Field(default=5.0, ge=0, description="per-atom energy, mean absolute error, 1/eV")
    forces: float = Field(default=5.0, ge=0, description="mean length of the force error vector, Å/eV")
    stress: float = Field(default=50.0, ge=0, description="stress, mean absolute error, Å³/eV")
    magmoms: float = Field(default=0.0, ge=0, description="magnetic moments, mean absolute error, 1/μB")
    energy_huber: float = Field(
        default=0.0, ge=0, description="error per atom below which it counts by its square, eV; zero: it never does"
    )
    forces_over: Literal["atoms", "structures"] = Field(
        default="atoms", description="what the mean of force errors is over; structures: each counts alike"
    )
    tasks: dict[str, TaskLoss] = Field(
        default={}, description="by task, factors on these weights: {metals: {energy: 2, stress: 0}}"
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> LossConfig:
        if not any((self.energy, self.forces, self.stress, self.magmoms)):
            raise ValueError("all weights are zero, so there is nothing to learn; set loss.energy or loss.forces")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The terms that count, by property."""
        every = {"energy": self.energy, "forces": self.forces, "stress": self.stress, "magmoms": self.magmoms}
        return {name: weight for name, weight in every.items() if weight > 0}


class ParameterGroup(Section):
    """Parameters that learn at a pace of their own."""

    match: str = Field(description="part of their names, with * and ?: blocks.0, *embedding, router")
    lr_factor: float = Field(default=1.0, gt=0, description="on optim.lr")
    weight_decay: float | None = Field(default=None, ge=0, description="as optim.weight_decay where null")


class OptimConfig(Section):
    """AdamW, or Muon with it, with linear warm-up and cosine decay."""

    orthogonal: bool = Field(
        default=True,
        description="matrices move along the orthogonal factor of their momentum (Muon), at ten times the rate of the "
        "rest; false: AdamW for all",
    )
    lr: float = Field(default=7e-4, gt=0, description="highest learning rate")
    warmup_steps: int = Field(default=100, ge=0, description="steps until it is reached")
    final_lr_fraction: float = Field(default=0.01, ge=0, le=1, description="lr of the last step over the highest")
    weight_decay: float = Field(
        default=0.2, ge=0, description="on matrices; never on norms, biases, tables by element or task"
    )
    clip: float = Field(default=10.0, gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(default=0.998, ge=0, lt=1, description="of the mean of weights that is saved")
    groups: list[ParameterGroup] = Field(
        default=[], description="slower or faster parameters: [{match: '*embedding', lr_factor: 0.1}]; the first counts"
    )


class MeshConfig(Section):
    """How many ranks, and what they share. `replica × unit` must be the number of launched ranks."""

    replica: int = Field(default=1, ge=1, description="replicas of a unit; they share the structures of a step")
    unit: int = Field(
        default=1, ge=1, description="ranks of a unit; they share the model and cut structures that are large"
    )
    route: Literal["auto", "backward", "tangent"] = Field(
        default="auto", description="of a unit's gradients; tangent: slower, and less memory with model.checkpoint"
    )
    weights: Literal["auto", "keep", "regather"] = Field(
        default="auto",
        description="whole weights of blocks on route backward: through a step, or one by one",
    )


class RunConfig(Section):
    """Where, how long, how."""

    dir: Path | None = Field(default=None, description="run directory; the next free runs/PRESET-NNN where null")
    seed: int = Field(default=0, ge=0, description="of the weights and of the order of the data")
    max_steps: int = Field(default=4500, ge=1, description="optimiser steps; the schedules span them")
    stop_at_step: int | None = Field(default=None, ge=1, description="write a checkpoint and end there; resume goes on")
    memory_gb: float | None = Field(
        default=None,
        gt=0,
        description="that a rank may use, for what is auto; most of what there is where null",
    )
    dtype: Literal["float32", "float64"] = Field(default="float32", description="precision of the weights")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="where to compute")
    timeout: float = Field(default=1800.0, gt=0, description="seconds that a rank waits for the others")
    checked: bool | None = Field(
        default=None, description="ranks compare each exchange before they make it; where null, JANUS_CHECKED=1 says so"
    )
    deterministic: bool = Field(default=False, description="only algorithms that give the same bits every time")
    log_every: int = Field(default=10, ge=1, description="steps between lines of metrics.jsonl")
    val_every: int = Field(default=500, ge=1, description="steps between validations")
    checkpoint_every: int = Field(default=500, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="newest checkpoints that are kept")
    checkpoint_in_background: bool = Field(
        default=True, description="copy the state, then write while the training goes on; else write without a copy"
    )
    max_bad_steps: int = Field(default=10, ge=1, description="steps in a row without finite gradients before giving up")
