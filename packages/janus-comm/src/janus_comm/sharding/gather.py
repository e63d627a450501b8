"""Sharded parameters under a double backward: gather nodes.

A block's weights come out of a node of the graph whose backward pass is a reduce-scatter. What autograd keeps of them
for the inner and the outer pass is a handle; their memory may go after the forward pass and come back, filled again,
when a pass reaches the block. Autograd joins what a handle gives back to the node it came from, so gradients of every
pass meet there, and are reduced once.

All ranks gather and reduce in one order in every pass, whatever autograd asks for on each of them: the order of the
forward pass, and its reverse.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from janus_comm.chain import Chain
from janus_comm.memory import MemoryAccounting
from janus_comm.mesh import Mesh
from janus_comm.sharding.bucket import Bucket, ShardedTensors, holding, places_by_block, plain_rows
from janus_comm.sharding.copies import Copies
from janus_comm.sharding.initialize import Start
from janus_comm.sharding.layout import without_repeats
from janus_comm.sharding.milestones import Visit, pass_milestone
from janus_comm.sharding.reduction import Reduction
from janus_comm.tangents import recompute_block


class GatherNodes:
    """A model whose parameters are shards, block by block; differentiated by double backward.

    From now on the modules hold shards: rows of each parameter, under its name. Optimisers, moving means and clipping
    see these. The model is called inside :meth:`phase` only, which :func:`janus_comm.by_double_backward` and
    :func:`janus_comm.evaluate` enter when they are given it::

        nodes = GatherNodes(model, model.blocks, mesh)
        by_double_backward(potential, [positions], loss, nodes.phase)

    What does not belong to a block, or to several of them, is gathered once in the forward pass and stays to the end.
    Gradients are summed over ranks, not averaged: what is differentiated is the sum of all ranks' losses.

    Ranks that share a graph have other collectives between these, which a :class:`Chain` holds in order. Call blocks
    through :meth:`in_step` there, so that gathers and reductions keep their places among them::

        atoms, edges = nodes.in_step(chain, block, atoms, edges, geometry)

    Args:
        model: on every rank with the same values, or on the meta device.
        blocks: modules of it that are called one after the other, in any order, also several times.
        mesh: parameters are shared over its units; its replicas hold the same shards.
        regather: give a block's weights back after each pass and gather them again for the next: at most two blocks'
            weights are there at a time. Otherwise they stay until their gradient is reduced.
        checkpoint: keep only what goes into a block, and compute what is inside again when a derivative needs it.
            Blocks must not draw random numbers then.
        dtype: what blocks compute in; None for the parameters' own.
        start: how a model on the meta device gets its values.
        presented: the form in which modules hold their rows: tensors, or DTensors (`as_dtensors`).
        memory: is told when whole weights come and go, for as long as it is looked at: it remembers all of it.
        ignored: parameters that are left as they are; somebody else shards them.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        mesh: Mesh,
        *,
        regather: bool = False,
        checkpoint: bool = False,
        dtype: torch.dtype | None = None,
        start: Start | None = None,
        presented: ShardedTensors = plain_rows,
        memory: MemoryAccounting | None = None,
        ignored: Collection[nn.Parameter] = (),
    ) -> None:
        self.regather = regather
        self.ranks, self._replicas = mesh.unit_axis, mesh.replica_axis
        names = {module: name for name, module in model.named_modules()}
        titles = [*(names.get(block, type(block).__name__) for block in blocks), "the rest of the model"]
        places = places_by_block(model, blocks, ignored)
        self.buckets: list[Bucket] = []
        for index, (module, title) in enumerate(zip([*blocks, model], titles, strict=True)):
            own = places[index] if start is None else start.of(module, places[index], index)
            self.buckets.append(Bucket(title, own, mesh.unit_axis, memory, dtype, presented))
            places[index].clear()  # the whole parameters go before those of the next block are made
        self._index_of = {block: index for index, block in enumerate(blocks)}
        self._by_storage = {bucket.storage: index for index, bucket in enumerate(self.buckets)}
        self._rest = len(blocks)
        self._visits: list[int] = []
        self._copies = Copies({bucket.storage: bucket.name for bucket in self.buckets})
        self._step = _Step()
        for index, module in enumerate([*blocks, model]):
            self._surround(module, index, checkpoint and module is not model)

    # Phases of a step

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase of a step: ``forward``, ``inner``, ``outer``; or the first two inside an ``evaluation``."""
        step = self._step
        with ExitStack() as stack:
            if name == "evaluation":
                step.evaluating = True
                stack.callback(self._end)
            elif name == "forward":
                step = self._begin()
                if not (step.evaluating or self._copies.checked):
                    stack.enter_context(self._copies)
            elif name == "inner":
                self._expect([*reversed(self._visits)])
            elif name == "outer":
                self._expect([*self._visits, *reversed(self._visits)])
                step.to_reduce = deque(self._order_of_gradients())
                stack.callback(self._end)
            step.phase = name
            stack.enter_context(saved_tensors_hooks(self._pack, self._unpack))
            yield
            self._gather_the_rest()
            if name == "outer":
                self._reduce_the_rest()
        step.phase = "evaluation" if step.evaluating else ""

    def first_needed(self) -> tuple[list[int], list[int]]:
        """The buckets that :meth:`look_ahead` begins to gather, and the others in the order of the forward pass."""
        order = [self._rest, *dict.fromkeys(self._visits)]
        order += [index for index in range(len(self.buckets)) if index not in order]
        return order[:2], order[2:]

    def look_ahead(self) -> None:
        """Begin to gather what the next forward pass needs first, whose shards have their new values.

        Every rank calls it, or none, between two evaluations.
        """
        self._start(self._rest)
        self._expect(self._visits)

    def _begin(self) -> _Step:
        """A new evaluation, whatever became of the last one."""
        if self._step.phase not in ("", "evaluation"):
            self._end()  # an error has ended it
        self._step.weights.clear()
        self._expect(self._visits)
        self._visits = []
        return self._step

    def _end(self) -> None:
        for bucket in self.buckets:
            if bucket.on_its_way:
                bucket.finish_gather()
            bucket.release()
        self._step = _Step()

    def _order_of_gradients(self) -> list[int]:
        """Last come first; a bucket that was not called, and the rest of the model, at the end."""
        called = list(dict.fromkeys(self._visits))
        others = [index for index in range(len(self.buckets)) if index not in called]
        return [index for index in [*reversed(called), *others] if self.buckets[index].layout.trained]

    # Gathering

    def _expect(self, visits: Sequence[int]) -> None:
        """From here on buckets are needed in this order."""
        step = self._step
        visits = without_repeats([index for index in visits if index != self._rest])
        if step.present is not None and visits[:1] == [step.present]:
            visits = visits[1:]
        step.expected = deque(visits if self.regather or step.present is None else ())
        self._start_next()

    def _start(self, index: int) -> None:
        bucket = self.buckets[index]
        if not bucket.alive and not bucket.on_its_way:
            bucket.start_gather()

    def _finish(self, index: int) -> None:
        if not self.buckets[index].alive:
            self.buckets[index].finish_gather()

    def _start_next(self) -> None:
        if self._step.expected:
            self._start(self._step.expected[0])

    def _next(self) -> None:
        step = self._step
        index = step.expected.popleft()
        if self.regather and step.present is not None and step.present != index:
            self.buckets[step.present].release()
        self._start(index)
        self._finish(index)
        step.present = index
        self._start_next()

    def _need(self, index: int) -> None:
        """The bucket is alive afterwards; what other ranks expect to be gathered before it has been."""
        bucket = self.buckets[index]
        if self._step.phase == "forward":
            self._visit(index)
        while not bucket.alive:
            if not self._step.expected:
                raise RuntimeError(
                    f"the weights of {bucket.name} are needed in phase {self._step.phase or 'none'!r} out of the order "
                    "of the forward pass; give `phase` to by_double_backward or evaluate, or use regather=False"
                )
            self._next()

    def _visit(self, index: int) -> None:
        """The forward pass calls blocks as it likes, on all ranks alike; last time's order is only a guess."""
        step = self._step
        if index == self._rest:
            self._start(index)
            self._finish(index)
            return
        self._visits.append(index)
        if step.present == index:
            return
        if not step.expected or step.expected[0] != index:
            self._forget_expected()
            step.expected = deque([index])
        self._next()

    def _forget_expected(self) -> None:
        for index in self._step.expected:
            if self.buckets[index].on_its_way:
                self.buckets[index].finish_gather()
                if self.regather:
                    self.buckets[index].release()
        self._step.expected.clear()

    def _gather_the_rest(self) -> None:
        if self._step.phase == "forward":
            self._forget_expected()
        while self._step.expected:
            self._next()

    # Blocks

    def _surround(self, module: nn.Module, index: int, checkpoint: bool) -> None:
        bucket, rest, forward = self.buckets[index], self.buckets[self._rest], module.forward
        own = [(place, holder) for place, each in enumerate(bucket.places) for holder in each.holders]
        # What several blocks share is the rest's, which is there, except when a block is computed again.
        lent = rest.lent_to(module) if checkpoint else []

        def computed(weights: Sequence[Tensor], borrowed: Sequence[Tensor | None], *args: Any, **kwargs: Any) -> Any:
            if self._step.phase != "forward":  # again, for a derivative
                self._need(index)
            held: list[tuple[tuple[nn.Module, str], Tensor | None]]
            held = [(holder, weights[place]) for place, holder in own]
            held += [(holder, tensor) for (_, holder), tensor in zip(lent, borrowed, strict=True)]
            with holding(held):
                return forward(*args, **kwargs)

        def run(*args: Any, **kwargs: Any) -> Any:
            if self._step.phase != "forward":
                raise RuntimeError(
                    f"{bucket.name} holds shards of its weights; call the model through by_double_backward(..., phase) "
                    "or evaluate(..., phase) with the phase of its GatherNodes"
                )
            self._need(index)
            weights = self._weights(index)
            if checkpoint and torch.is_grad_enabled():
                everything = self._weights(self._rest)
                borrowed = [everything[place] for place, _ in lent]
                return recompute_block(computed, weights, borrowed, *args, **kwargs)
            return computed(weights, [module._parameters[name] for _, (module, name) in lent], *args, **kwargs)

        module.forward = run

    def _weights(self, index: int) -> tuple[Tensor, ...]:
        """The bucket's weights in this evaluation's graph: one node, however often they are used."""
        bucket, known = self.buckets[index], self._step.weights
        if self._step.evaluating or not torch.is_grad_enabled():
            return bucket.weights()
        if index not in known:
            known[index] = _Gather.apply(self, index, *bucket.shards)  # type: ignore[no-untyped-call]
        return known[index]

    def in_step(self, chain: Chain, block: nn.Module, *features: Any) -> Any:
        """What the block makes of the features, its gathers and reductions in step with the chain on every rank.

        Tensors of floating point numbers among the features and results pass a milestone before and behind the block.
        Ranks call blocks in one order, also those that have nothing to compute. What a checkpointed block gets from
        other ranks inside has to be kept (:class:`KeptResults`).

        Raises ValueError for a module that is no block of these nodes.
        """
        index = self._index_of.get(block)
        if index is None:
            raise ValueError(f"{type(block).__name__} is not one of the blocks whose weights are gathered")
        self._step.chained = True
        before = Visit(lambda: self._enter(index), lambda: self._leave(index))
        behind = Visit(lambda: None, lambda: self._enter(index))
        after: Any = block(*_passed(before, chain, features))
        if isinstance(after, Tensor):
            return _passed(behind, chain, (after,))[0]
        return _passed(behind, chain, after)

    def _enter(self, index: int) -> None:
        """A pass is about to go through a block."""
        if self._step.phase in ("inner", "outer") and self.regather:
            self._need(index)

    def _leave(self, index: int) -> None:
        """A pass has gone through a block. When the outer one has been through all calls, its gradients are whole."""
        step = self._step
        if step.phase != "outer":
            return
        step.left.append(index)
        while step.to_reduce and step.left.count(index) == self._visits.count(index) and index in step.to_reduce:
            self._reduce(step.to_reduce.popleft())

    # What autograd keeps

    def _pack(self, tensor: Tensor) -> Tensor | _Kept:
        storage = tensor.untyped_storage()._cdata
        index = self._by_storage.get(storage)
        if index is not None:
            return _Kept(index, tensor)
        self._copies.kept(storage)
        return tensor

    def _unpack(self, kept: Tensor | _Kept) -> Tensor:
        if isinstance(kept, _Kept):
            self._need(kept.bucket)
            return kept.tensor
        return kept

    # Gradients

    def receive(self, index: int, gradients: Sequence[Tensor | None]) -> None:
        """Take a bucket's gradients on this rank; called by its node, in the outer pass."""
        step = self._step
        if step.phase != "outer":
            raise RuntimeError(
                f"the weights of {self.buckets[index].name} got a gradient in phase {step.phase or 'none'!r}; "
                "only the outer pass of by_double_backward may reach parameters, and its graph is not kept"
            )
        step.received[index] = gradients
        while not step.chained and step.to_reduce and step.to_reduce[0] in step.received:
            self._reduce(step.to_reduce.popleft())

    def _reduce(self, index: int) -> None:
        step, bucket = self._step, self.buckets[index]
        self._advance()
        step.reductions.append(Reduction(bucket, bucket.start_reduce(step.received.pop(index, ())), self._replicas))
        if not self.regather and bucket.layout.trained == len(bucket.layout.slots):
            bucket.release()  # what is frozen may be needed still

    def _advance(self) -> None:
        """Each reduction on its way takes one more step, the oldest first, on every rank alike."""
        step = self._step
        step.reductions = deque(reduction for reduction in step.reductions if not reduction.advance())

    def _reduce_the_rest(self) -> None:
        while self._step.to_reduce:
            self._reduce(self._step.to_reduce.popleft())
        while self._step.reductions:
            self._advance()


def _passed(visit: Visit, chain: Chain, features: Sequence[Any]) -> tuple[Any, ...]:
    """The features, those that have derivatives behind a milestone."""
    floating = [isinstance(one, Tensor) and one.is_floating_point() for one in features]
    through = iter(pass_milestone(visit, chain, *(one for one, yes in zip(features, floating, strict=True) if yes)))
    return tuple(next(through) if yes else one for one, yes in zip(features, floating, strict=True))


class _Step:
    """What changes in the course of one evaluation."""

    def __init__(self) -> None:
        self.phase = ""
        self.evaluating = False
        self.chained = False
        self.left: list[int] = []
        self.present: int | None = None
        self.expected: deque[int] = deque()
        self.weights: dict[int, tuple[Tensor, ...]] = {}
        self.to_reduce: deque[int] = deque()
        self.received: dict[int, Sequence[Tensor | None]] = {}
        self.reductions: deque[Reduction] = deque()


@dataclass(frozen=True, eq=False)
class _Kept:
    """A tensor in the memory of a bucket's whole, which may have gone."""

    bucket: int
    tensor: Tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, nodes: GatherNodes, index: int, *shards: Tensor) -> tuple[Tensor, ...]:
        ctx.nodes, ctx.index = nodes, index
        ctx.set_materialize_grads(False)
        weights = nodes.buckets[index].weights()
        ctx.mark_non_differentiable(
            *(weight for weight, shard in zip(weights, shards, strict=True) if not shard.requires_grad)
        )
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("gradients of sharded parameters are not differentiable themselves: no create_graph")
        # The reduced gradient is not there yet: it is added to the shards' own when it comes.
        ctx.nodes.receive(ctx.index, gradients)
        return (None, None, *(None for _ in gradients))
