"""Trains interatomic potentials: data, losses, the loop, checkpoints, reports and the command line.

Importing this costs little more than importing torch; what is heavy is imported where it is used.
"""

from typing import TYPE_CHECKING, Any

from janus_train.failure import UserError

if TYPE_CHECKING:
    from janus_train.config import Config, load_config
    from janus_train.recipes.recipe import Recipe
    from janus_train.run import resume, train
    from janus_train.sharded import ShardedStep
    from janus_train.step import ReplicatedStep, StepResult
    from janus_train.stopping import Stopped
    from janus_train.strategy import Strategy

__all__ = [
    "Config",
    "Recipe",
    "ReplicatedStep",
    "ShardedStep",
    "StepResult",
    "Stopped",
    "Strategy",
    "UserError",
    "load_config",
    "resume",
    "train",
]

_HOME = {
    "Config": "janus_train.config",
    "load_config": "janus_train.config",
    "Recipe": "janus_train.recipes.recipe",
    "resume": "janus_train.run",
    "train": "janus_train.run",
    "ReplicatedStep": "janus_train.step",
    "StepResult": "janus_train.step",
    "ShardedStep": "janus_train.sharded",
    "Stopped": "janus_train.stopping",
    "Strategy": "janus_train.strategy",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'janus_train' has no attribute '{name}'")
