"""A whole configuration."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from janus_train.config.data import DataConfig
from janus_train.config.model import STARTED, ModelConfig
from janus_train.config.references import ReferencesConfig
from janus_train.config.section import Section
from janus_train.config.start import StartConfig
from janus_train.config.training import LossConfig, MeshConfig, OptimConfig, RunConfig
from janus_train.config.watch import WatchConfig


class Config(Section):
    """A run."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    start: StartConfig = StartConfig()
    references: ReferencesConfig = ReferencesConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    watch: WatchConfig = WatchConfig()

    @model_validator(mode="before")
    @classmethod
    def _shape_of_the_start(cls, values: Any) -> Any:
        """A run that starts from a model has its shape, unless the user names another preset."""
        if not isinstance(values, dict):
            return values
        start, model = values.get("start"), values.get("model", {})
        starts = start.get("model") if isinstance(start, dict) else getattr(start, "model", None)
        if starts and isinstance(model, dict) and "preset" not in model:
            return {**values, "model": {"preset": STARTED, **model}}
        return values

    @model_validator(mode="after")
    def _something_to_start_from(self) -> Config:
        if self.model.preset == STARTED and self.start.model is None:
            raise ValueError(f"model.preset={STARTED} is the shape of start.model; set start.model=PATH as well")
        return self

    @model_validator(mode="after")
    def _kernels_have_a_device(self) -> Config:
        if self.model.triton and self.run.device != "cuda":
            raise ValueError(
                f"model.triton is for CUDA devices, and run.device is {self.run.device}; set run.device=cuda, or leave "
                "model.triton out"
            )
        return self

    @model_validator(mode="after")
    def _experts_settle(self) -> Config:
        if self.model.router.freeze_at >= self.run.max_steps:
            raise ValueError(
                f"model.router.freeze_at is {self.model.router.freeze_at} and run.max_steps {self.run.max_steps}: the "
                "experts of elements would never be settled; freeze earlier or train longer"
            )
        return self
