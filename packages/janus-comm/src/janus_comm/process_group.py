"""A communicator over a torch.distributed process group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from janus_comm.communicator import (
    Communicator,
    SingleRank,
    even_counts,
    require_addable,
    require_all_rows,
    require_exchange,
    require_own_rows,
    require_plain,
    row_bytes,
    sum_in_rank_order,
)
from janus_comm.failure import RankFailed

T = TypeVar("T")


class ProcessGroupCommunicator:
    """The ranks of a process group (``torch.distributed.group.WORLD``, say).

    Rows travel as bytes, so that every dtype behaves alike on a backend that knows only some of them. Sums are an
    exchange of parts, a sum in the order of the ranks, and a gather: as many bytes as a ring moves, and the same bits
    on every rank and backend.
    """

    def __init__(self, group: dist.ProcessGroup):
        self._open_group: dist.ProcessGroup | None = group
        self._parts: list[ProcessGroupCommunicator] = []
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def sum(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum of all ranks' tensors, the same bits on every rank."""
        require_plain("sum", tensor)
        require_addable("sum", tensor)
        flat = tensor.reshape(-1)
        counts = even_counts(flat.numel(), self.size)
        return self.gather_rows(self.reduce_scatter_rows(flat, counts), counts).view(tensor.shape)

    def gather_rows(
        self, rows: Shaped[Tensor, "own *features"], counts: Sequence[int]
    ) -> Shaped[Tensor, "all *features"]:
        """All ranks' rows in the order of the ranks."""
        return self.start_gather_rows(rows, counts)()

    def start_gather_rows(
        self, rows: Shaped[Tensor, "own *features"], counts: Sequence[int]
    ) -> Callable[[], Shaped[Tensor, "all *features"]]:
        """`gather_rows` that goes on while the rank does other things; what comes back waits for the result."""
        require_own_rows("gather_rows", rows, counts, self.rank, self.size)
        if min(counts) == max(counts):
            gathered = rows.new_empty(sum(counts), *rows.shape[1:])
            if not gathered.numel():
                return lambda: gathered
            parts = list(_as_bytes(gathered).chunk(self.size))
            work = dist.all_gather(parts, _as_bytes(rows), group=self._group, async_op=True)
            return lambda: _when(work, gathered)
        # A gather of uneven parts is an exchange in which everyone gets the same rows: no padding on the wire.
        copies = rows.repeat(self.size, *(1 for _ in rows.shape[1:]))
        return self._start_exchange(copies, [counts[self.rank]] * self.size, counts)

    def reduce_scatter_rows(
        self, rows: Shaped[Tensor, "all *features"], counts: Sequence[int]
    ) -> Shaped[Tensor, "own *features"]:
        """This rank's rows of the sum of all ranks' rows."""
        return self.start_reduce_scatter_rows(rows, counts)()

    def start_reduce_scatter_rows(
        self, rows: Shaped[Tensor, "all *features"], counts: Sequence[int]
    ) -> Callable[[], Shaped[Tensor, "own *features"]]:
        """`reduce_scatter_rows` that goes on while the rank does other things; what comes back waits for the result."""
        require_all_rows("reduce_scatter_rows", rows, counts, self.size)
        require_addable("reduce_scatter_rows", rows)
        own = counts[self.rank]
        received = self._start_exchange(rows, counts, [own] * self.size)
        return lambda: sum_in_rank_order(received().split(own) if own else [received()])

    def exchange_rows(
        self, rows: Shaped[Tensor, "sent *features"], send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Shaped[Tensor, "received *features"]:
        """The rows that every rank meant for this one, in the order of the ranks."""
        require_exchange("exchange_rows", rows, send_counts, receive_counts, self.rank, self.size)
        return self._start_exchange(rows, send_counts, receive_counts)()

    def _start_exchange(
        self, rows: Shaped[Tensor, "sent *features"], send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Callable[[], Shaped[Tensor, "received *features"]]:
        received = rows.new_empty(sum(receive_counts), *rows.shape[1:])
        width, sent = row_bytes(rows), _as_bytes(rows)
        work = dist.all_to_all_single(
            _as_bytes(received),
            sent,
            [count * width for count in receive_counts],
            [count * width for count in send_counts],
            group=self._group,
            async_op=True,
        )
        return lambda: _when(work, received, sent)

    def gather_object(self, value: T) -> list[T]:
        """Copies of all ranks' values, in the order of the ranks."""
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values  # type: ignore[return-value]  # every entry has been replaced by a rank's value

    def barrier(self) -> None:
        """Return when every rank has arrived."""
        dist.barrier(group=self._group)

    def split(self, color: int) -> Communicator:
        """The group of the ranks that gave the same colour, in their present order."""
        colors = self.gather_object(color)
        everyone = dist.get_process_group_ranks(self._group)
        members = [member for member, its_color in zip(everyone, colors, strict=True) if its_color == color]
        if len(members) == 1:
            return SingleRank()
        # Local synchronisation: only members call, so that groups of different colours need no common order.
        part = ProcessGroupCommunicator(dist.new_group(members, use_local_synchronization=True))
        self._parts.append(part)
        return part

    def close(self) -> None:
        """Let go of the group and of those split from it, before the process groups are destroyed.

        A group that something still refers to at the end of the interpreter (a communicator does, and so does every
        graph made with it) keeps its threads, one of which may then abort the process.
        """
        for part in self._parts:
            part.close()
        self._open_group = None

    @property
    def _group(self) -> dist.ProcessGroup:
        if self._open_group is None:
            raise RankFailed(f"rank {self.rank} talks to a group that has ended; do so inside `with launch() as ...`")
        return self._open_group


def _when(work: dist.Work, result: Tensor, *needed: Tensor) -> Tensor:
    """The result once the work is done; what the work needs stays until then."""
    work.wait()
    return result


def _as_bytes(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, " bytes"]:
    # A tensor of one element may be contiguous with a stride of zero, which has no view as bytes.
    return tensor.detach().contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
