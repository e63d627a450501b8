"""A training step whose batch, experts and other parameters are shared by the ranks of a unit (FS-3D)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
    make_halo,
    plan_halo,
)
from janus_comm import evaluate as evaluate_inputs
from janus_comm.sharding import GatherNodes, Start, StockShards, gradient_norm, make_device_mesh
from janus_comm.sharding.milestones import Visit, pass_milestone
from janus_graph import Properties, no_halo, strained
from janus_graph.geometry import volumes
from janus_moe import MoELayer, SwiGLUExperts
from janus_moe.cost import CostModel
from janus_moe.expert_parallel import ShardedExperts, UnitStep, shard_experts
from janus_moe.planner import ExpertPlan, ExpertPlanner, slice_sizes
from janus_train.data.batch import Batch, FrameSource, label_counts
from janus_train.data.unit_batch import UnitBatch, unit_batch
from janus_train.evaluate import Prediction
from janus_train.loss import OF_STRUCTURES, loss_errors, weighted_loss
from janus_train.recipes import Sharding
from janus_train.state import Portion
from janus_train.step import Prepared, StepResult, passes_of, step_result, step_values, sum_gradients

_RATES = {"cpu": (5e10, 2e9, 1e-4), "cuda": (4e13, 2e11, 2e-5)}
"""FLOP/s, bytes/s and seconds an exchange, by kind of device: what plans of experts weigh against each other. Only
their proportions matter, and only for speed."""


@dataclass(frozen=True)
class Strategy:
    """How a sharded step spends memory and time.

    Attributes:
        route: to the gradient of a loss of forces: by double backward, or by a tangent.
        weights: of the backward route: whole from the forward pass until their gradient is reduced, or gathered again
            for each pass.
        checkpoint: compute blocks again instead of keeping what is inside them.
        pass_edges: most edges that a rank computes at a time; None for no limit.
    """

    route: Literal["backward", "tangent"] = "backward"
    weights: Literal["keep", "regather"] = "keep"
    checkpoint: bool = False
    pass_edges: int | None = None


class ShardedStep:
    """The ranks of a unit share each batch, cut by work, every parameter and every expert; replicas of the unit share
    the batches of a step.

    The model is sharded in place. One on the meta device is made block by block, so that no rank ever holds more than
    one block whole, with the weights that one process would draw.

    Args:
        model: of the recipe; whole, or on the meta device.
        sharding: what is to be known of it.
        mesh: the ranks.
        loss_weights: loss terms.
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
        loss_weights: Mapping[str, float],
        strategy: Strategy,
        device: torch.device,
        accounting: Accounting,
    ) -> None:
        self.model, self.sharding, self.mesh, self.strategy = model, sharding, mesh, strategy
        self.weights, self._device, self._accounting = dict(loss_weights), device, accounting
        self._unit = mesh.unit_axis
        self._phase_name = ""
        self._evaluation: _Evaluation | None = None
        self._shapes = shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._layers = [module for module in model.modules() if isinstance(module, MoELayer)]
        self.experts: list[ShardedExperts] = []
        self._shards = self._shard()
        cut = [name for name in shapes if not sharding.replicated(name)]
        self._dims = {name: self._cut_dimension(name) for name in cut}
        self.portions = {name: self._portion(shapes[name], dim) for name, dim in self._dims.items()}
        cost = expert_costs(sharding, device)
        self._planner = ExpertPlanner(sharding.experts, sharding.expert_hidden, cost)
        self._selection: np.ndarray | None = None

    # Sharding

    def _shard(self) -> GatherNodes | StockShards:
        model, blocks, strategy = self.model, self.sharding.blocks, self.strategy
        if strategy.checkpoint:
            for block in blocks:
                self._keep_collectives(block)
        start = None
        if any(parameter.is_meta for parameter in model.parameters()):
            start = Start(self._initialize, self._device)
        else:
            model.to(self._device)
            self.experts = shard_experts(model, self.mesh.unit_index, self.mesh.unit)
        of_experts = [
            parameter
            for module in model.modules()
            if isinstance(module, (SwiGLUExperts, ShardedExperts))
            for parameter in module.parameters()
        ]
        whole = [parameter for name, parameter in model.named_parameters() if self.sharding.replicated(name)]
        if strategy.route == "tangent":
            devices = make_device_mesh(self.mesh, self._device)
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
                    empty = torch.empty_like(parameter, device=self._device)
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
        each = [passes_of(share, source.edges[share].tolist(), total) for share in shares]
        mine = each[mesh.replica_index]
        mine += [[]] * (max(map(len, each)) - len(mine))
        # A unit without structures takes its part in what replicas do together, with nothing to count.
        passes = [unit_batch(source, some or [places[0]], mesh.unit_index, mesh.unit, not some) for some in mine]
        return Prepared(label_counts([source.frames[place] for place in places]), passes)

    def gradients(self, prepared: Prepared, stop: bool = False) -> StepResult:
        """This rank's portions of the gradient of the loss of the whole batch."""
        trained = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        for parameter in trained.values():
            parameter.grad = None
        values = step_values(self.weights, stop, self._device)
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
        evaluation = self._evaluation = _Evaluation(self, share)
        batch = evaluation.batch
        seen: list[Tensor] = []

        def loss(outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
            errors = loss_errors(evaluation.properties(outputs, gradients), batch)
            sums = {name: errors[name].sum() for name in self.weights}
            with torch.no_grad():
                counted = {
                    name: (errors[name] * evaluation.counted if name in OF_STRUCTURES else errors[name]).sum()
                    for name in self.weights
                }
                seen.append(torch.stack([weighted_loss(counted, counts, self.weights), *counted.values()]))
            return weighted_loss(sums, counts, self.weights)

        route = by_tangent if self.strategy.route == "tangent" else by_double_backward
        route(evaluation.potential, evaluation.inputs, loss, self._phase)
        evaluation.experts.return_gradients(self.experts)
        self._evaluation = None
        return seen[0]

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
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
        rows = np.stack([share.atom_rows if kind == "atoms" else share.edge_rows for kind in self.sharding.rows])
        return self._planner.plan(rows, self._selected())

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
        for some in passes_of(mine, source.edges[mine].tolist(), budget):
            share = unit_batch(source, some, self.mesh.unit_index, self.mesh.unit)
            self._evaluation = _Evaluation(self, share)
            found = self._evaluation.predict(source, some, properties)
            if self.mesh.unit_index == 0:
                yield from zip(some, found, strict=True)

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
                own, portion = _own(parameter), self.portions.get(name)
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
        module, attribute = self._holder(name)
        parameter = module._parameters[attribute]
        assert parameter is not None
        shape, dim = self.portions[name].shape, self._dims[name]
        own = _own(parameter).movedim(dim, 0).contiguous()
        rest = [size for place, size in enumerate(shape) if place != dim]
        counts = slice_sizes(shape[dim], self.mesh.unit)
        whole = self._counted(self._unit, "whole").gather_rows(own.reshape(len(own), *rest), counts)
        return whole.movedim(0, dim).reshape(self._shapes[name]).contiguous()

    def _holder(self, name: str) -> tuple[nn.Module, str]:
        owner, _, attribute = name.rpartition(".")
        return self.model.get_submodule(owner), attribute


def expert_costs(sharding: Sharding, device: torch.device) -> CostModel:
    """What plans of experts weigh against each other on a kind of device."""
    flops, bandwidth, latency = _RATES[device.type]
    return CostModel.from_rates(
        sharding.width, sharding.expert_hidden,
        flops_per_second=flops, bytes_per_second=bandwidth, seconds_per_exchange=latency,
    )  # fmt: skip


def _own(tensor: Tensor) -> Tensor:
    """This rank's rows, as an ordinary tensor that shares their memory."""
    detached = tensor.detach()
    local: Tensor = detached.to_local() if hasattr(detached, "to_local") else detached
    return local


class _Evaluation:
    """One batch on one rank: what its halo, its experts and its blocks need of other ranks, in one order.

    Args:
        step: of which this is a pass.
        share: this rank's part of the batch.
    """

    def __init__(self, step: ShardedStep, share: UnitBatch) -> None:
        self.step, self.share = step, share
        device = step._device
        self.batch: Batch = share.batch.to(device)
        self.counted = share.counted.to(device)
        self.kept: dict[nn.Module, KeptResults] = {}
        self._chain: Chain | None = None
        graph, part = self.batch.graph, share.part
        self.experts = UnitStep(
            step.plan(share), step.mesh.unit_index, step.exchange("experts", lambda: self._chain), device
        )
        if share.cut:
            plan = plan_halo(graph.atoms, part.send_rows, part.receive_counts).to(device)
            self._halo = make_halo(plan, step.exchange("halo", lambda: self._chain))
        else:
            self._halo = no_halo
        own = np.flatnonzero(share.shared.numpy() >= 0)
        self._shared_rows = torch.from_numpy(own).to(device)
        self._table_rows = share.shared[torch.from_numpy(own)].to(device)
        self._inputs = ["positions"] + (["strain"] if "stress" in step.weights else [])

    @property
    def inputs(self) -> list[Tensor]:
        """What energies are differentiated with respect to: positions, and strains where there is a stress to learn."""
        graph = self.batch.graph
        return [graph.positions] + ([torch.zeros_like(graph.cells)] if "strain" in self._inputs else [])

    @property
    def chain(self) -> Chain:
        """The order of the collectives that are called now."""
        assert self._chain is not None
        return self._chain

    @contextmanager
    def on_chain(self, chain: Chain) -> Iterator[Chain]:
        """Collectives that are called inside are links of this chain."""
        self._chain, before = chain, self._chain
        try:
            yield chain
        finally:
            self._chain = before

    def potential(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """This rank's parts of the energies of its structures, and the moments of its atoms where they are learnt."""
        chain = self._chain = Chain(*inputs)
        graph = self.batch.graph.replace(positions=inputs[0])
        if len(inputs) > 1:
            graph = strained(graph, inputs[1])
        asked = ("energy", "magmoms") if "magmoms" in self.step.weights else ("energy",)

        def run_block(block: nn.Module, *features: Any) -> Any:
            return self.step.run_block(chain, block, *features)

        found = self.step.model(graph, asked, self._halo, run_block, self.experts.group_rows)
        energy = chain.join(found.energy)
        return (energy,) if found.magmoms is None else (energy, found.magmoms)

    def properties(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Properties:
        """What the whole unit says of the structures, as a function of what this rank has a part in.

        Of a structure that is cut, values are those of all ranks together, and derivatives those in this rank's part:
        summed over ranks they are the derivative of the whole.
        """
        energy, forces = outputs[0], -gradients[0]
        virial = gradients[1] if len(gradients) > 1 else None
        if self.share.cut:
            columns = [energy[:, None]] + ([] if virial is None else [virial.flatten(1)])
            own = torch.cat(columns, dim=1).detach()
            table = own.new_zeros(self.share.cut, own.shape[1])
            table.index_add_(0, self._table_rows, own.index_select(0, self._shared_rows))
            table = self.step.sum_in_unit(table)
            others = torch.zeros_like(own)
            others[self._shared_rows] = table.index_select(0, self._table_rows) - own[self._shared_rows]
            energy = energy + others[:, 0]
            virial = None if virial is None else virial + others[:, 1:].view_as(virial)
        stress = None
        if virial is not None:
            volume = volumes(self.batch.graph)
            # Where there is no volume the derivative is dropped, not divided: 0 / 0 would poison a masked loss.
            stress = virial * torch.where(volume > 0, 1 / volume.clamp(min=1e-300), 0.0)[:, None, None]
        return Properties(energy, forces, stress, outputs[1] if len(outputs) > 1 else None)

    def predict(self, source: FrameSource, places: Sequence[int], properties: Collection[str]) -> list[Prediction]:
        """Predictions for all frames of the unit's batch, the same on all its ranks."""
        graph, held = self.batch.graph, torch.tensor(self.share.places)
        outputs, gradients = evaluate_inputs(self.potential, self.inputs, self.step._phase)
        sizes = source.atoms[list(places)]
        first = np.cumsum(sizes) - sizes
        own_sizes = sizes[list(self.share.places)]
        offsets = first[list(self.share.places)] - (np.cumsum(own_sizes) - own_sizes)
        rows = graph.input_index.cpu() + torch.from_numpy(offsets)[graph.structure_index.cpu()]
        columns = 3 + (len(outputs) > 1)
        per_structure = torch.zeros(len(places), 1 + 9, dtype=torch.float64)
        per_atom = torch.zeros(int(sizes.sum()), columns, dtype=torch.float64)
        per_structure[held, 0] = outputs[0].double().cpu()
        if len(gradients) > 1:
            per_structure[held, 1:] = gradients[1].double().cpu().flatten(1)
        per_atom[rows, :3] = -gradients[0].double().cpu()
        if len(outputs) > 1:
            per_atom[rows, 3] = outputs[1].double().cpu()
        flat = torch.cat([per_structure.flatten(), per_atom.flatten()]).to(self.step._device)
        flat = self.step.sum_in_unit(flat).cpu()
        per_structure = flat[: per_structure.numel()].view_as(per_structure)
        per_atom = flat[per_structure.numel() :].view_as(per_atom)
        return _predictions(source, places, per_structure.numpy(), per_atom.numpy(), properties)


def _predictions(
    source: FrameSource,
    places: Sequence[int],
    per_structure: np.ndarray,
    per_atom: np.ndarray,
    properties: Collection[str],
) -> list[Prediction]:
    found = []
    rows = np.split(per_atom, np.cumsum(source.atoms[list(places)])[:-1])
    for place, values, atoms in zip(places, per_structure, rows, strict=True):
        structure = source.frames[place].structure
        stress = None
        if "stress" in properties and structure.has_volume:
            stress = values[1:].reshape(3, 3) / abs(np.linalg.det(structure.cell))
        found.append(
            Prediction(
                float(values[0]),
                atoms[:, :3] if "forces" in properties else None,
                stress,
                atoms[:, 3] if "magmoms" in properties else None,
            )
        )
    return found
