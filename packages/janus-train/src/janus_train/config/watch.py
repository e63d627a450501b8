"""What is watched while a run goes on: which model is the best, when to stop early, who is told."""

from __future__ import annotations

from pydantic import Field, field_validator

from janus_train.config.section import Section

WATCHED_ERRORS = (
    "energy_mae", "energy_rmse", "forces_mae", "forces_rmse", "stress_mae", "stress_rmse", "magmoms_mae",
)  # fmt: skip
"""Errors of a task that a validation computes, in the units of `janus_train.evaluate.Evaluation`."""


class WatchConfig(Section):
    """Which validation is the best, when there have been enough without a better one, and who is told of the log."""

    metric: str = Field(
        default="loss",
        description="the lower, the better the model: loss, an error such as forces_mae (mean over the tasks), or "
        "TASK/forces_mae",
    )
    min_delta: float = Field(
        default=0.0, ge=0, description="a validation that is not lower by more than this is none for the better"
    )
    patience: int | None = Field(
        default=None, ge=1, description="validations in a row that are none for the better, after which the run ends"
    )
    plateau: int = Field(default=5, ge=1, description="the same, after which the run says so, and goes on")
    tensorboard: bool = Field(default=False, description="also write the log for TensorBoard, into the run directory")
    wandb: str | None = Field(
        default=None, min_length=1, description="project of Weights & Biases that also gets the log"
    )

    @field_validator("metric")
    @classmethod
    def _is_computed(cls, value: str) -> str:
        error = value.rpartition("/")[2]
        if value != "loss" and error not in WATCHED_ERRORS:
            raise ValueError(f"'{value}' is not computed; choose loss, or {', '.join(WATCHED_ERRORS)}, or TASK/ERROR")
        return value
