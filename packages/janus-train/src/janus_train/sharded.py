"""A training step whose batch, experts and other parameters are shared by the ranks of a unit (FS-3D)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from janus_comm import (
    Accounting,
    Chain,
    Communicator,
    Counted,
    KeptResults,
    Mesh,
    all_to_all,
    by_double_backward,
    by_tangent,
)
from janus_comm.sharding import GatherNodes, Start, StockShards, gradient_norm, make_device_mesh
from janus_comm.sharding.milestones import Visit, pass_milestone
from janus_moe import MoELayer, SwiGLUExperts
from janus_moe.cost import CostModel
from janus_moe.expert_parallel import ShardedExperts, shard_experts
from janus_moe.planner import ExpertPlan, ExpertPlanner, slice_sizes
from janus_train.data.batch import FrameSource
from janus_train.data.batching import within_budget
from janus_train.data.unit_batch import UnitBatch, unit_batch
from janus_train.evaluate import Prediction
from janus_train.loss import OF_STRUCTURES, Loss, weighted_loss
from janus_train.matrices import CutStack, MatrixExchange, MatrixFunction
from janus_train.moving_mean import own_part
from janus_train.recipes import Sharding
from janus_train.state import Portion
from janus_train.step import Prepared, StepResult, step_result, step_values, sum_gradients
from janus_train.strategy import Strategy
from janus_train.unit_pass import UnitPass

_RATES = {"cpu": (5e10, 2e9, 1e-4), "cuda": (4e13, 2e11, 2e-5)}
"""FLOP/s, bytes/s and seconds an exchange, by kind of device: what plans of experts weigh against each other. Only
their proportions matter, and only for speed."""


class ShardedStep:
    """The ranks of a unit share each batch, cut by work, every parameter and every expert; replicas of the unit share
    the batches of a step.

    The model is sharded in place. One on the meta device is made block by block, so that no rank ever holds more than
    one block whole, with the weights that one process would draw.

    Args:
        model: of the recipe; whole, or on the meta device.
        sharding: what is to be known of it.
        mesh: the ranks.
        loss: weights of its terms, or a `Loss` that says more.
        strategy: how to spend memory and time.
        device: where to compute.
        accounting: is told what this rank sends, by kind.
    """

    portions: Mapping[str, Portion]

    def __init__(
        self,
        model: nn.Module,
        sharding: Sharding,
        mesh: Mesh,
        loss: Loss | Mapping[str, float],
        strategy: Strategy,
        device: torch.device,
        accounting: Accounting,
    ) -> None:
        self.model, self.sharding, self.mesh, self.strategy = model, sharding, mesh, strategy
        self.loss = (loss if isinstance(loss, Loss) else Loss(dict(loss))).to(device)
        self.weights, self.device, self._accounting = self.loss.weights, device, accounting
        self._unit = mesh.unit_axis
        self._phase_name = ""
        self._evaluation: UnitPass | None = None
        self._shapes = shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._layers = [module for module in model.modules() if isinstance(module, MoELayer)]
        self.experts: list[ShardedExperts] = []
        self._shards = self._shard()
        cut = [name for name in shapes if not sharding.replicated(name)]
        self._dims = {name: self._cut_dimension(name) for name in cut}
        self.portions = {name: self._portion(shapes[name], dim) for name, dim in self._dims.items()}
        cost = strategy.expert_costs or expert_costs(sharding, device)
        self._planner = ExpertPlanner(sharding.experts, sharding.expert_hidden, cost)
        self._selection: np.ndarray | None = None
        self._matrices: MatrixExchange | None = None

    # Sharding

    def _shard(self) -> GatherNodes | StockShards:
        model, blocks, strategy = self.model, self.sharding.blocks, self.strategy
        if strategy.checkpoint:
            for block in blocks:
                self._keep_collectives(block)
        start = None
        if any(parameter.is_meta for parameter in model.parameters()):
            start = Start(self._initialize, self.device)
        else:
            model.to(self.device)
            self.experts = shard_experts(model, self.mesh.unit_index, self.mesh.unit)
        of_experts = [
            parameter
            for module in model.modules()
            if isinstance(module, (SwiGLUExperts, ShardedExperts))
            for parameter in module.parameters()
        ]
        whole = [parameter for name, parameter in model.named_parameters() if self.sharding.replicated(name)]
        if strategy.route == "tangent":
            devices = make_device_mesh(self.mesh, self.device)
            return StockShards(
                model, blocks, devices, checkpoint=strategy.checkpoint, start=start, ignored=[*of_experts, *whole]
            )
        return GatherNodes(
            model, blocks, self.mesh, regather=strategy.weights == "regather", checkpoint=strategy.checkpoint,
            start=start, ignored=[*of_experts, *whole],
        )  # fmt: skip

    def _keep_collectives(self, block: nn.Module) -> None:
        """When the block is computed again, for a derivative, it gets the rows that it got the first time."""
        forward = block.forward

        def run(*features: Any) -> tuple[Tensor, ...]:
            evaluation = self._evaluation
            assert evaluation is not None
            kept = evaluation.kept.setdefault(block, KeptResults())
            if self._phase_name in ("forward", "tangent"):
                with evaluation.chain.keeping(kept.begin()):
                    first: tuple[Tensor, ...] = forward(*features)
                    return first
            inputs = [each for each in features if isinstance(each, Tensor)]
            with evaluation.on_chain(Chain(*inputs, kept=kept.again())) as chain:
                return tuple(chain.join(result) for result in forward(*features))

        block.forward = run

    def _initialize(self, module: nn.Module) -> None:
        """Values for a block, whose experts are whole for this moment only; or for what is outside the blocks."""
        if module is self.model:
            self.sharding.initialize(module)
            return
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                if parameter.is_meta:  # not among those that are sharded with the block
                    empty = torch.empty_like(parameter, device=self.device)
                    part.register_parameter(name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        self.sharding.initialize(module)
        self.experts += shard_experts(module, self.mesh.unit_index, self.mesh.unit, len(self.experts))

    def _cut_dimension(self, name: str) -> int:
        """The dimension that a parameter is cut along: hidden units of experts, rows of all others."""
        owner, _, attribute = name.rpartition(".")
        if not isinstance(self.model.get_submodule(owner), ShardedExperts):
            return 0
        return 2 if attribute == "gate_up" else 1

    def _portion(self, shape: tuple[int, ...], dim: int) -> Portion:
        if not shape:
            # A scalar is a row, which the first rank has.
            return Portion((1,), (min(self.mesh.unit_index, 1),))
        sizes = slice_sizes(shape[dim], self.mesh.unit)
        offsets = [0] * len(shape)
        offsets[dim] = sum(sizes[: self.mesh.unit_index])
        return Portion(shape, tuple(offsets))

    # Steps

    def prepare(self, source: FrameSource, places: Sequence[int]) -> Prepared:
        """This rank's parts of its unit's batches. Units have equally many, one of them maybe empty."""
        mesh = self.mesh
        shares = source.shares(list(places), mesh.replica)
        budget = self.strategy.pass_edges
        total = None if budget is None else budget * mesh.unit
        each = [within_budget(share, source.edges, total) for share in shares]
        mine = each[mesh.replica_index]
        mine += [[]] * (max(map(len, each)) - len(mine))
        # A unit without structures takes its part in what replicas do together, with nothing to count.
        passes = [unit_batch(source, some or [places[0]], mesh.unit_index, mesh.unit, not some) for some in mine]
        return Prepared(self.loss.counts([source.frames[place] for place in places]), passes)

    def gradients(self, prepared: Prepared, stop: bool = False) -> StepResult:
        """This rank's portions of the gradient of the loss of the whole batch."""
        trained = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        for parameter in trained.values():
            parameter.grad = None
        values = step_values(self.weights, stop, self.device)
        for share in prepared.passes:
            assert isinstance(share, UnitBatch)
            values[:-1] += self._pass(share, prepared.counts)
        for parameter in trained.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.mesh.replica > 1:
            for layer in self.experts:
                for parameter in layer.parameters():
                    if parameter.grad is not None:
                        parameter.grad = self.mesh.replica_axis.sum(parameter.grad)
        whole = [parameter for name, parameter in trained.items() if name not in self.portions]
        sum_gradients(whole, self.mesh.world)
        values = self.mesh.world.sum(values)
        norm = gradient_norm([parameter for name, parameter in trained.items() if name in self.portions], self._unit)
        norms = [norm, *(parameter.grad.double().norm() for parameter in whole if parameter.grad is not None)]
        return step_result(values, torch.stack(norms).norm(), prepared.counts, self.weights)

    def _pass(self, share: UnitBatch, counts: Mapping[str, int]) -> Tensor:
        evaluation = self._evaluation = UnitPass(self, share)
        batch = evaluation.batch
        seen: list[Tensor] = []

        def loss(outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
            errors = self.loss.errors(evaluation.properties(outputs, gradients), batch)
            of_tasks = self.loss.by_task(errors, batch)
            with torch.no_grad():
                mine = weighted_loss(counted_once(of_tasks, evaluation), counts, self.weights)
                seen.append(torch.stack([mine, *counted_once(errors, evaluation).values()]))
            return weighted_loss({name: items.sum() for name, items in of_tasks.items()}, counts, self.weights)

        route = by_tangent if self.strategy.route == "tangent" else by_double_backward
        route(evaluation.potential, evaluation.inputs, loss, self.phase)
        evaluation.experts.return_gradients(self.experts)
        evaluation.end()
        self._evaluation = None
        return seen[0]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase of a step or of an evaluation, for accounting and for whoever shards the weights."""
        self._phase_name = name
        with self._accounting.phase(name), self._shards.phase(name):
            yield

    def run_block(self, chain: Chain, block: nn.Module, *features: Any) -> Any:
        """A block, its gathers in step with the chain of all other collectives."""
        if isinstance(self._shards, GatherNodes):
            return self._shards.in_step(chain, block, *features)
        stay = Visit(lambda: None, lambda: None)
        atoms, edges, *rest = features
        atoms, edges = pass_milestone(stay, chain, atoms, edges)
        return pass_milestone(stay, chain, *block(atoms, edges, *rest))

    def exchange(self, kind: str, chain: Callable[[], Chain | None]) -> Callable[..., Tensor]:
        """An exchange of rows in the unit, counted under this kind, whose place is in the chain of the moment."""
        ranks = self._counted(self._unit, kind)
        return lambda rows, send, receive: all_to_all(rows, ranks, send, receive, chain())

    @staticmethod
    def _counted(ranks: Communicator, kind: str) -> Communicator:
        return ranks.of_kind(kind) if isinstance(ranks, Counted) else ranks

    def sum_in_unit(self, values: Tensor) -> Tensor:
        """Values of all ranks of the unit, added up, without a derivative."""
        return self._counted(self._unit, "totals").sum(values)

    def plan(self, share: UnitBatch) -> ExpertPlan:
        """Which experts are computed where for a batch."""
        return self._planner.plan(share.rows_of_layers(self.sharding.rows), self._selected())

    def _selected(self) -> np.ndarray:
        """The experts of elements in all layers; routers that are frozen are asked once."""
        if self._selection is None:
            routers = [layer.router for layer in self._layers]
            selection = np.stack([router.selection.cpu().numpy() for router in routers])
            if any(int(router.frozen_at) < 0 for router in routers):
                return selection
            self._selection = selection
        return self._selection

    # Predictions

    def predictions(
        self, source: FrameSource, properties: Collection[str], budget: int
    ) -> Iterator[tuple[int, Prediction]]:
        """Predictions for the frames of this unit, on its first rank."""
        mine = source.shares(range(len(source.frames)), self.mesh.replica)[self.mesh.replica_index]
        for some in within_budget(mine, source.edges, budget):
            share = unit_batch(source, some, self.mesh.unit_index, self.mesh.unit)
            self._evaluation = UnitPass(self, share)
            found = self._evaluation.predict(source, some, properties)
            self._evaluation.end()
            if self.mesh.unit_index == 0:
                yield from zip(some, found, strict=True)

    def on_matrices(self, function: MatrixFunction, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """This rank's parts of a function of whole matrices, each of which one rank of the unit puts together."""
        if self._matrices is None:
            stacks = {
                name: CutStack(shape := self._shapes[name], dim, tuple(slice_sizes(shape[dim], self.mesh.unit)))
                for name, dim in self._dims.items()
                if name in tensors
            }
            self._matrices = MatrixExchange(stacks, self._counted(self._unit, "matrices"))
        return self._matrices(function, tensors)

    # The whole model

    def whole_model(self) -> nn.Module | None:
        """The whole model on the first rank: one parameter after the other is put together, and kept there only."""
        first = self.mesh.world.rank == 0
        values = {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()} if first else {}
        for name in self.portions:
            tensor = self._gather(name)
            if first:
                values[name] = tensor.cpu()
        if not first:
            return None
        model = self.sharding.whole()
        model.load_state_dict(values, assign=True)
        return model

    def open_saved(self, directory: Path) -> None:
        """The saved weights, of which every rank reads its portions."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                own, portion = own_part(parameter), self.portions.get(name)
                if portion is None:
                    own.copy_(self.sharding.read(directory, name, (slice(None),) * own.dim()))
                    continue
                region = tuple(
                    slice(start, start + size) for start, size in zip(portion.offsets, own.shape, strict=True)
                )
                if own.numel():
                    own.copy_(self.sharding.read(directory, name, region))
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self.sharding.read(directory, name, (slice(None),) * buffer.dim()))
        self._selection = None

    def _gather(self, name: str) -> Tensor:
        """A whole parameter. Every rank calls it."""
        shape, dim = self.portions[name].shape, self._dims[name]
        own = own_part(self.model.get_parameter(name)).movedim(dim, 0).contiguous()
        rest = [size for place, size in enumerate(shape) if place != dim]
        counts = slice_sizes(shape[dim], self.mesh.unit)
        whole = self._counted(self._unit, "whole").gather_rows(own.reshape(len(own), *rest), counts)
        return whole.movedim(0, dim).reshape(self._shapes[name]).contiguous()


def counted_once(errors: Mapping[str, Tensor], evaluation: UnitPass) -> dict[str, Tensor]:
    """Sums over the errors that this rank counts in its unit: those of structures on one rank, those of its atoms."""
    return {
        name: (items * evaluation.counted if name in OF_STRUCTURES else items).sum() for name, items in errors.items()
    }


def expert_costs(sharding: Sharding, device: torch.device) -> CostModel:
    """What plans of experts weigh against each other on a kind of device."""
    flops, bandwidth, latency = _RATES[device.type]
    return CostModel.from_rates(
        sharding.width, sharding.expert_hidden,
        flops_per_second=flops, bytes_per_second=bandwidth, seconds_per_exchange=latency,
    )  # fmt: skip
