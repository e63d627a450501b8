"""Which way a run's ranks share a step."""

from __future__ import annotations

import torch

from janus_comm import Accounting, Mesh
from janus_train.config import Config
from janus_train.failure import UserError
from janus_train.recipes import Recipe
from janus_train.step import ReplicatedStep, TrainingStep


def make_step(config: Config, recipe: Recipe, mesh: Mesh, device: torch.device, accounting: Accounting) -> TrainingStep:
    """Sharded over units of several ranks; where a unit is one rank, each has the whole model.

    Raises:
        UserError: a unit of several ranks, and a model that only comes whole.
    """
    weights, budget = config.loss.weights, config.data.pass_edges
    if mesh.unit == 1:
        recipe.model.to(device)
        return ReplicatedStep(recipe.model, weights, mesh.world, recipe.load, budget)
    if recipe.sharding is None:
        raise UserError(
            f"mesh.unit={mesh.unit}, but the model {config.model.preset} cannot be shared between ranks; set "
            f"mesh.replica={mesh.world.size} mesh.unit=1"
        )
    from janus_train.sharded import ShardedStep, Strategy

    strategy = Strategy(config.mesh.route, config.mesh.weights, config.model.checkpoint, budget)
    return ShardedStep(recipe.model, recipe.sharding, mesh, weights, strategy, device, accounting)
