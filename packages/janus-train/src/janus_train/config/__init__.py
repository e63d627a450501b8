"""The configuration of a run: one YAML file, every field of which can be set on the command line."""

from janus_train.config.config import Config
from janus_train.config.data import DataConfig, KeyNames, SourceConfig
from janus_train.config.files import (
    config_schema,
    file_and_settings,
    known_keys,
    load_config,
    save_config,
    with_data_files,
)
from janus_train.config.model import STARTED, ModelConfig, RouterConfig
from janus_train.config.references import ReferencesConfig, TaskReferences
from janus_train.config.section import Section
from janus_train.config.start import StartConfig
from janus_train.config.training import (
    LossConfig,
    MeshConfig,
    OptimConfig,
    ParameterGroup,
    RunConfig,
    TaskLoss,
)
from janus_train.config.watch import WatchConfig

__all__ = [
    "STARTED",
    "Config",
    "DataConfig",
    "KeyNames",
    "LossConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "ParameterGroup",
    "ReferencesConfig",
    "RouterConfig",
    "RunConfig",
    "Section",
    "SourceConfig",
    "StartConfig",
    "TaskLoss",
    "TaskReferences",
    "WatchConfig",
    "config_schema",
    "file_and_settings",
    "known_keys",
    "load_config",
    "save_config",
    "with_data_files",
]
