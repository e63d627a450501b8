"""The configuration of a run: one YAML file, every field of which can be set on the command line."""

from janus_train.config.config import Config
from janus_train.config.data import DataConfig, KeyNames, SourceConfig
from janus_train.config.files import config_schema, known_keys, load_config, save_config
from janus_train.config.model import ModelConfig, RouterConfig
from janus_train.config.section import Section
from janus_train.config.training import LossConfig, MeshConfig, OptimConfig, RunConfig

__all__ = [
    "Config",
    "DataConfig",
    "KeyNames",
    "LossConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "RouterConfig",
    "RunConfig",
    "Section",
    "SourceConfig",
    "config_schema",
    "known_keys",
    "load_config",
    "save_config",
]
