"""A whole configuration."""

from __future__ import annotations

from pydantic import model_validator

from janus_train.config.data import DataConfig
from janus_train.config.model import ModelConfig
from janus_train.config.section import Section
from janus_train.config.training import LossConfig, MeshConfig, OptimConfig, RunConfig
from janus_train.config.watch import WatchConfig


class Config(Section):
    """A run."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    watch: WatchConfig = WatchConfig()

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
