"""Which model."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from janus_train.config.section import Section

STARTED = "start"
"""The preset of runs that start from a model: its shape."""


class RouterConfig(Section):
    """How the experts of elements are settled: by the data alone, or by a first part of the training."""

    noise: float = Field(
        default=0.0, ge=0, description="on the choice of experts at the start; the initial choice has a lead of 0.01"
    )
    freeze_at: int = Field(
        default=0, ge=0, description="step from which the experts of elements stay; until then noise fades out"
    )

    @model_validator(mode="after")
    def _noise_has_time(self) -> RouterConfig:
        if self.noise > 0 and self.freeze_at == 0:
            raise ValueError(
                f"noise is {self.noise}, but experts are frozen from the first step; set freeze_at to some hundred "
                "steps, or leave noise out"
            )
        return self


class ModelConfig(BaseModel):
    """The model: a preset, and any field of its configuration that shall differ."""

    model_config = ConfigDict(extra="allow", frozen=True)

    preset: str = Field(
        default="nano",
        description="nano, micro, mini, base, S, M, L; matris-6m or matris-10m; start: that of start.model, if set",
    )
    fused: bool = Field(default=False, description="compile elementwise formulas: a faster step, after a minute's wait")
    triton: bool = Field(default=False, description="Triton kernels for attentions; on CUDA devices")
    checkpoint: bool | None = Field(
        default=None, description="compute blocks again in the backward pass: less memory, slower; null: if a unit must"
    )
    router: RouterConfig = RouterConfig()

    @property
    def changes(self) -> dict[str, Any]:
        """Fields of the preset that the user set."""
        return dict(self.__pydantic_extra__ or {})
