"""Which way a run's ranks share a step."""

from __future__ import annotations

from collections.abc import Callable

import torch

from janus_comm import Accounting, Mesh
from janus_train.config import Config
from janus_train.data.batch import FrameSource
from janus_train.failure import UserError
from janus_train.loss import Loss
from janus_train.recipes import Recipe
from janus_train.step import ReplicatedStep, TrainingStep


def make_step(
    config: Config,
    recipe: Recipe,
    loss: Loss,
    train: FrameSource,
    mesh: Mesh,
    device: torch.device,
    accounting: Accounting,
    say: Callable[[str], None],
) -> TrainingStep:
    """Sharded over units of several ranks; where a unit is one rank, each has the whole model.

    Args:
        config: of the run.
        recipe: the model.
        loss: what to minimise.
        train: what it is trained on, whose largest step has to fit.
        mesh: the ranks.
        device: where to compute.
        accounting: is told what this rank sends.
        say: is told how memory will be spent.

    Raises:
        UserError: a unit of several ranks, and a model that only comes whole.
    """
    if mesh.unit == 1:
        recipe.model.to(device)
        return ReplicatedStep(recipe.model, loss, mesh.world, recipe.load, config.data.pass_edges)
    if recipe.sharding is None:
        raise UserError(
            f"mesh.unit={mesh.unit}, but the model {config.model.preset} cannot be shared between ranks; set "
            f"mesh.replica={mesh.world.size} mesh.unit=1"
        )
    from janus_train.memory_plan import plan_memory
    from janus_train.sharded import ShardedStep

    plan = plan_memory(config, recipe.sharding, train, mesh, device)
    say(plan.text())
    return ShardedStep(recipe.model, recipe.sharding, mesh, loss, plan.strategy, device, accounting)
