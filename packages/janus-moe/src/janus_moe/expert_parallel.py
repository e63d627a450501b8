"""Experts sharded over the ranks of a unit, computed where a plan says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from janus_moe.dispatch import Dispatch, WideGroups, dispatch_layers
from janus_moe.experts import SwiGLUExperts, gated_silu
from janus_moe.fusion import TensorFunction
from janus_moe.groups import ElementGroups, group_rows
from janus_moe.planner import ExpertPlan, slice_sizes
from janus_moe.products import GroupedProduct
from janus_moe.routing import Router
from janus_moe.weights import untouched_zeros


class Exchange(Protocol):
    """Send rows to other ranks and get theirs, differentiable any number of times: its adjoint brings cotangents back.

    janus-comm has one for processes; on one rank, rows stay what they are.
    """

    def __call__(
        self, rows: Shaped[Tensor, "sent *features"], send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Shaped[Tensor, "received *features"]:
        """The rows that every rank meant for this one, in the order of the ranks."""
        ...


class UnitStep:
    """One evaluation of a model whose experts are sharded over a unit, and the way home of its gradients.

    Layers group their rows with `group_rows`, restore experts and move rows as the plan says; after the backward pass,
    every rank calls `return_gradients`. Weights do not travel in the backward pass itself: there, ranks reach a layer
    at moments of their own, and the inner pass of a double backward would send gradients that nobody asked for.

    Args:
        plan: of all layers and ranks.
        rank: this one.
        exchange: of rows between the ranks of the unit, for this evaluation.
        device: where the rows are.
        weights_exchange: of weights and of their gradients, which is not differentiated; the same one where None.
    """

    def __init__(
        self,
        plan: ExpertPlan,
        rank: int,
        exchange: Exchange,
        device: torch.device | str = "cpu",
        weights_exchange: Exchange | None = None,
    ) -> None:
        self.exchange, self.weights_exchange = exchange, weights_exchange or exchange
        self.dispatches = dispatch_layers(plan, rank, device)
        self._restored: dict[int, Tensor] = {}

    def group_rows(
        self, atomic_numbers: Sequence[int], counts: Sequence[int], device: torch.device | str = "cpu"
    ) -> UnitGroups:
        """`janus_moe.group_rows` for layers of sharded experts.

        Raises:
            ValueError: as there.
        """
        groups = group_rows(atomic_numbers, counts, device)
        return UnitGroups(groups.atomic_numbers, groups.elements, groups.ends, groups.counts, self)

    def restore(self, experts: ShardedExperts) -> Float[Tensor, "units width3"]:
        """Hidden units of the experts that this rank computes in a layer: gate, up and down of each in one row.

        They are the same tensor however often a layer is run in this evaluation, and a leaf that gathers its gradient.
        """
        if experts.layer not in self._restored:
            part = self.dispatches[experts.layer]
            with torch.no_grad():
                self._restored[experts.layer] = self.weights_exchange(experts.units_of(part.slices), *part.slice_counts)
        units = self._restored[experts.layer]
        if torch.is_grad_enabled() and experts.trained:
            units.requires_grad_()
        return units

    @torch.no_grad()
    def return_gradients(self, layers: Sequence[ShardedExperts]) -> None:
        """Adds the gradients of restored experts to those of the slices they came from, over all ranks of the unit.

        Every rank calls this once after the backward pass, with the same layers in the same order, also where its own
        experts have no gradient. The adjoint of the restoring carries them.

        Raises:
            ValueError: a layer that was not run in this evaluation.
        """
        for experts in layers:
            if experts.layer not in self._restored:
                raise ValueError(f"layer {experts.layer} has not been run in this step; return gradients of run layers")
            if not experts.trained:
                continue
            units, part = self._restored.pop(experts.layer), self.dispatches[experts.layer]
            gradient = torch.zeros_like(units) if units.grad is None else units.grad
            back = self.weights_exchange(gradient, *reversed(part.slice_counts))
            experts.add_gradient(back, part)


@dataclass(frozen=True, eq=False)
class UnitGroups(ElementGroups):
    """Rows grouped by element on one rank of a unit.

    Attributes:
        step: the evaluation they belong to.
    """

    step: UnitStep


class ShardedExperts(nn.Module):
    """`SwiGLUExperts` of which this rank stores a slice: some hidden units of every expert.

    An expert is a sum over its hidden units, so slices are narrower experts; all of them together, restored where the
    plan says, are the expert itself.

    Args:
        experts: the whole ones, whose slice is copied.
        layer: which layer of the plan this is.
        rank: this one.
        ranks: in the unit.

    Attributes:
        gate_up: first matrices, [experts, 2, slice, width]: gate, then up.
        down: second matrices, [experts, slice, width].
    """

    def __init__(self, experts: SwiGLUExperts, layer: int, rank: int, ranks: int) -> None:
        super().__init__()
        self.layer, self.hidden = layer, experts.down.shape[1]
        sizes = slice_sizes(self.hidden, ranks)
        first = sum(sizes[:rank])
        for name, whole, dim in (("gate_up", experts.gate_up, 2), ("down", experts.down, 1)):
            part = whole.detach().narrow(dim, first, sizes[rank]).clone()
            setattr(self, name, nn.Parameter(part, requires_grad=whole.requires_grad))

    gate_up: nn.Parameter
    down: nn.Parameter

    @property
    def trained(self) -> bool:
        """Whether any of the two asks for a gradient."""
        return self.gate_up.requires_grad or self.down.requires_grad

    def forward(
        self,
        rows: Float[Tensor, "rows width"],
        groups: ElementGroups,
        router: Router,
        product: GroupedProduct,
        activation: TensorFunction = gated_silu,
    ) -> Float[Tensor, "rows width"]:
        """What `SwiGLUExperts` gives for these rows, wherever it is computed.

        Every rank of the unit calls this in the same layer, with no rows too.

        Raises:
            ValueError: groups that were not made by a `UnitStep`, or are not those that the plan was made for.
        """
        step = self._step(groups)
        plan, units = step.dispatches[self.layer], step.restore(self)
        work = rows
        if plan.moves:
            received = step.exchange(rows.index_select(0, plan.sent), *plan.row_counts)
            work = torch.cat([rows, received])
        results = [self._compute(wide, work, units, router, product, activation) for wide in plan.wide]
        # With nothing to compute here, rows are a part of the result's history all the same.
        computed = torch.cat(results) if results else work[:0] * 1.0
        if plan.kept is None:
            result = computed
        else:
            result = torch.zeros_like(rows).index_add(0, plan.kept_rows, computed.index_select(0, plan.kept))
        if not plan.moves:
            return result
        back = step.exchange(computed.index_select(0, plan.results), *reversed(plan.row_counts))
        if not plan.returned:
            return result + back.sum()  # of no rows: zero, and the exchange in its history
        for places, own in plan.returned:
            result = result.index_add(0, own, back.index_select(0, places))
        return result

    def units_of(self, experts: Int64[Tensor, "some"]) -> Float[Tensor, "units width3"]:
        """This rank's hidden units of some experts, expert by expert: gate, up and down of each unit in one row."""
        gate_up = self.gate_up.index_select(0, experts).transpose(1, 2)
        down = self.down.index_select(0, experts).unsqueeze(2)
        return torch.cat([gate_up, down], dim=2).flatten(0, 1).flatten(1)

    def add_gradient(self, units: Float[Tensor, "units width3"], plan: Dispatch) -> None:
        """Adds gradients of the units that `units_of(plan.slices)` gave to those of the parameters."""
        parts = units.view(len(plan.slices), self.down.shape[1], 3, self.down.shape[2])
        for parameter, gradient in (
            (self.gate_up, parts[:, :, :2].transpose(1, 2)),
            (self.down, parts[:, :, 2]),
        ):
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                on_host = parameter.device.type == "cpu"
                # Most experts are nobody's: their gradients are pages that nobody writes to.
                parameter.grad = (
                    untouched_zeros(parameter.shape, parameter.dtype) if on_host else torch.zeros_like(parameter)
                )
            for places, experts in plan.shared:
                parameter.grad.index_add_(0, experts, gradient.index_select(0, places))

    def _step(self, groups: ElementGroups) -> UnitStep:
        if not isinstance(groups, UnitGroups):
            raise ValueError("these experts are sharded over a unit; group rows with UnitStep.group_rows")
        dispatches = groups.step.dispatches
        if not self.layer < len(dispatches):
            raise ValueError(f"the plan has {len(dispatches)} layers, but this is layer {self.layer}")
        if dispatches[self.layer].counts != groups.counts:
            raise ValueError(
                f"layer {self.layer} is planned for {dispatches[self.layer].counts} rows of its elements on this rank, "
                f"but got {groups.counts}; plan with the rows of this batch"
            )
        return groups.step

    def _compute(
        self,
        wide: WideGroups,
        work: Float[Tensor, "work width"],
        units: Float[Tensor, "units width3"],
        router: Router,
        product: GroupedProduct,
        activation: TensorFunction,
    ) -> Float[Tensor, "rows width"]:
        """Results of groups that are computed by as many experts each: one wide MLP a group, as in `SwiGLUExperts`."""
        rows = work if wide.rows is None else work.index_select(0, wide.rows)
        gates = router(wide.groups.elements)[1].gather(1, wide.slots).to(rows.dtype)
        present, slots = wide.slots.shape
        weights = units.index_select(0, wide.units).view(present, slots * self.hidden, 3, rows.shape[1])
        gate_up = weights[:, :, :2].transpose(1, 2).flatten(1, 2).transpose(1, 2)
        down = weights[:, :, 2] * gates.repeat_interleave(self.hidden, dim=1)[:, :, None]
        return product(activation(product(rows, gate_up, wide.groups)), down, wide.groups)


def shard_experts(model: nn.Module, rank: int, ranks: int, first_layer: int = 0) -> list[ShardedExperts]:
    """Replaces the experts of every layer of a model by this rank's slices, and gives them in the order of the plan.

    Nothing else of the model changes; its other parameters are whole on every rank, and their gradients are this rank's
    part of a sum. A model that no rank can hold is sharded block by block: `first_layer` is then which layer of the
    plan the block's first one is.

    Raises:
        ValueError: no such rank.
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"rank {rank} of {ranks} ranks; ranks are 0 to {ranks - 1}")
    names = [name for name, module in model.named_modules() if isinstance(module, SwiGLUExperts)]
    sharded = []
    for layer, name in enumerate(names, first_layer):
        owner, _, attribute = name.rpartition(".")
        experts = model.get_submodule(name)
        assert isinstance(experts, SwiGLUExperts)
        sharded.append(ShardedExperts(experts, layer, rank, ranks))
        setattr(model.get_submodule(owner), attribute, sharded[-1])
    return sharded
