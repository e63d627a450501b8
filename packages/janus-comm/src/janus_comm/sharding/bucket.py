"""The parameters of one block: shards that live always, and the whole of them while the block is at work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from janus_comm.communicator import Communicator
from janus_comm.memory import MemoryAccounting
from janus_comm.sharding.layout import Slot, bucket_layout


@dataclass(frozen=True, eq=False)
class Place:
    """A parameter, the modules that hold it under a name, and its full names; more than one where it is tied."""

    parameter: nn.Parameter
    holders: tuple[tuple[nn.Module, str], ...]
    names: tuple[str, ...]


def places_by_block(
    model: nn.Module, blocks: Sequence[nn.Module], ignored: Collection[nn.Parameter] = ()
) -> list[list[Place]]:
    """The parameters of each block, and last those that belong to no block, or to several of them; not the ignored.

    Raises ValueError when a block is no part of the model, or part of another block.
    """
    block_of = _block_of_modules(model, blocks)
    found: dict[nn.Parameter, list[tuple[int, nn.Module, str, str]]] = {}
    left_alone = {id(parameter) for parameter in ignored}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in left_alone:
                continue
            path = f"{module_name}.{name}" if module_name else name
            found.setdefault(parameter, []).append((block_of.get(module, len(blocks)), module, name, path))
    places: list[list[Place]] = [[] for _ in range(len(blocks) + 1)]
    for parameter, uses in found.items():
        owners = {block for block, _, _, _ in uses}
        place = Place(parameter, tuple((m, name) for _, m, name, _ in uses), tuple(path for *_, path in uses))
        places[owners.pop() if len(owners) == 1 else len(blocks)].append(place)
    return places


def _block_of_modules(model: nn.Module, blocks: Sequence[nn.Module]) -> dict[nn.Module, int]:
    names = {module: name for name, module in model.named_modules()}
    block_of: dict[nn.Module, int] = {}
    for index, block in enumerate(blocks):
        if block not in names or block is model:
            raise ValueError(f"block {index} ({type(block).__name__}) is no module inside the model")
        for module in block.modules():
            if module in block_of:
                raise ValueError(f"{names[module]} belongs to block {block_of[module]} and to block {index}")
            block_of[module] = index
    return block_of


def own_rows(whole: Shaped[Tensor, "..."], slot: Slot, rank: int) -> Shaped[Tensor, "..."]:
    """The rows of a whole parameter that a rank keeps."""
    rows = slot.rows_of(rank)
    return whole.reshape(slot.rows, *slot.shape[1:])[rows.start : rows.stop]


class ShardedTensors(Protocol):
    """Makes of this rank's rows of a tensor the form in which others (optimisers, checkpoints) see them."""

    def __call__(self, rows: Tensor, slot: Slot) -> Tensor:
        """A tensor in the memory of the rows."""
        ...


def plain_rows(rows: Shaped[Tensor, "..."], slot: Slot) -> Shaped[Tensor, "..."]:
    """The rows as they are: an ordinary tensor."""
    return rows


class Bucket:
    """Shards of some parameters on this rank, and their gathered whole.

    The whole is one tensor whose memory comes and goes: what autograd or a checkpoint has kept of it is valid whenever
    the bucket is *alive*.

    Args:
        name: of the block, for messages.
        places: the parameters. From now on the modules hold shards of them.
        ranks: that share them.
        memory: is told what is alive of the whole.
        dtype: what the block computes in; None for the dtype of the parameters.
        presented: the form in which the modules hold their rows.
    """

    def __init__(
        self,
        name: str,
        places: Sequence[Place],
        ranks: Communicator,
        memory: MemoryAccounting | None = None,
        dtype: torch.dtype | None = None,
        presented: ShardedTensors = plain_rows,
    ) -> None:
        self.name, self.ranks = name, ranks
        self.places = sorted(places, key=lambda place: not place.parameter.requires_grad)
        self.dtype = dtype or _common_dtype(name, self.places)
        trained = sum(place.parameter.requires_grad for place in self.places)
        shapes = [tuple(place.parameter.shape) for place in self.places]
        self.layout = bucket_layout(shapes, trained, ranks.size)
        self._presented = presented
        self._rows: list[Tensor] = []
        self.shards: list[nn.Parameter] = []
        for place, slot in zip(self.places, self.layout.slots, strict=True):
            rows = own_rows(place.parameter.detach(), slot, ranks.rank).clone()
            self._rows.append(rows)
            self.shards.append(nn.Parameter(presented(rows, slot), requires_grad=place.parameter.requires_grad))
        # The whole parameters go here, unless somebody else holds them.
        self.places = [replace(place, parameter=shard) for place, shard in zip(self.places, self.shards, strict=True)]
        self.put(self.shards)
        self._memory = memory
        self._gathering: Callable[[], Tensor] | None = None
        device = self._rows[0].device if self._rows else torch.device("cpu")
        self.whole = torch.empty(self.layout.elements, dtype=self.dtype, device=device)
        self._storage = self.whole.untyped_storage()
        self.whole_bytes = self._storage.nbytes()
        self._storage.resize_(0)
        self.alive = False

    def put(self, tensors: Sequence[Tensor]) -> None:
        """Let the modules hold these instead of what they hold now."""
        for place, tensor in zip(self.places, tensors, strict=True):
            for holder in place.holders:
                _hold(holder, tensor)

    def lent_to(self, block: nn.Module) -> list[tuple[int, tuple[nn.Module, str]]]:
        """Which of the parameters modules of a block hold, and where: parameters that several blocks share."""
        inside = set(block.modules())
        return [
            (index, holder)
            for index, place in enumerate(self.places)
            for holder in place.holders
            if holder[0] in inside
        ]

    def weights(self) -> tuple[Tensor, ...]:
        """The whole parameters, tensors in the memory of the whole, whether that is there or not."""
        # Set on the storage, not viewed: a view could not be given a history of its own.
        return tuple(
            self.whole.new_empty(0).set_(self._storage, slot.start, slot.shape, strides_of(slot.shape))
            for slot in self.layout.slots
        )

    @property
    def storage(self) -> int:
        """What the storage of every tensor in the whole is known by."""
        return self._storage._cdata

    def start_gather(self) -> None:
        """Ask the other ranks for their shards. Every rank calls it, in the same order."""
        own = torch.zeros(self.layout.shard_elements, dtype=self.dtype, device=self.whole.device)
        for rows, slot in zip(self._rows, self.layout.slots, strict=True):
            own[slot.shard_start : slot.shard_start + rows.numel()] = rows.reshape(-1)
        self._allocate(f"{self.name}, on its way", own.numel() * self.ranks.size * own.element_size())
        self._gathering = self.ranks.start_gather_rows(own, [own.numel()] * self.ranks.size)

    @property
    def on_its_way(self) -> bool:
        """Whether a gather was started and not finished."""
        return self._gathering is not None

    def finish_gather(self) -> None:
        """Wait for the shards and put them together."""
        assert self._gathering is not None
        everyone = self._gathering().view(self.ranks.size, -1)
        self._gathering = None
        self._storage.resize_(self.whole_bytes)
        self._allocate(self.name, self.whole_bytes)
        with torch.no_grad(), _unsafe_preserve_version_counter(self.whole):
            for slot in self.layout.slots:
                sent = everyone[:, slot.shard_start : slot.shard_start + slot.room]
                self.whole[slot.start : slot.start + slot.elements] = sent.reshape(-1)[: slot.elements]
        del everyone
        self._free(f"{self.name}, on its way")
        self.alive = True

    def _allocate(self, name: str, size: int) -> None:
        if self._memory is not None:
            self._memory.allocate(name, size)

    def _free(self, name: str) -> None:
        if self._memory is not None:
            self._memory.free(name)

    def release(self) -> None:
        """Give back the memory of the whole, if it is there."""
        if self.alive:
            self._storage.resize_(0)
            self._free(self.name)
            self.alive = False

    def start_reduce(self, gradients: Sequence[Tensor | None]) -> Callable[[], Tensor]:
        """Add up the ranks' gradients of the whole; waiting for it gives this rank's rows, flat and padded."""
        ranks, layout = self.ranks.size, self.layout
        flat = torch.zeros(ranks, layout.trained_elements, dtype=self.dtype, device=self.whole.device)
        for slot, gradient in zip(layout.slots[: layout.trained], gradients, strict=False):
            if gradient is not None:
                padded = torch.nn.functional.pad(gradient.reshape(-1), (0, ranks * slot.room - slot.elements))
                flat[:, slot.shard_start : slot.shard_start + slot.room] = padded.view(ranks, -1)
        return self.ranks.start_reduce_scatter_rows(flat.view(-1), [layout.trained_elements] * ranks)

    def add_gradient(self, flat: Shaped[Tensor, " shard"]) -> None:
        """Add a reduced gradient to the shards' own."""
        for shard, rows, slot in zip(self.shards, self._rows, self.layout.slots[: self.layout.trained], strict=False):
            if shard.requires_grad:
                part = flat[slot.shard_start : slot.shard_start + rows.numel()].view_as(rows).to(rows.dtype)
                if shard.grad is None:
                    shard.grad = self._presented(part.clone(), slot)
                else:
                    shard.grad += self._presented(part, slot)


@contextmanager
def holding(
    held: Sequence[tuple[tuple[nn.Module, str], Tensor | None]],
) -> Iterator[None]:
    """Modules hold these tensors under these names for a while, and afterwards what they held before."""
    before = [(holder, holder[0]._parameters[holder[1]]) for holder, _ in held]
    for holder, tensor in held:
        _hold(holder, tensor)
    try:
        yield
    finally:
        for holder, parameter in before:
            _hold(holder, parameter)


def _hold(holder: tuple[nn.Module, str], tensor: Tensor | None) -> None:
    # Not setattr: a gathered weight is a function of the shard, and no nn.Parameter.
    holder[0]._parameters[holder[1]] = tensor  # type: ignore[assignment]


def _common_dtype(name: str, places: Sequence[Place]) -> torch.dtype:
    dtypes = {place.parameter.dtype for place in places}
    if len(dtypes) > 1:
        told = ", ".join(f"{place.names[0]} {place.parameter.dtype}" for place in places)
        raise ValueError(
            f"{name} mixes dtypes ({told}); give its parameters one, or say what to compute in with dtype="
        )
    return dtypes.pop() if dtypes else torch.get_default_dtype()


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
