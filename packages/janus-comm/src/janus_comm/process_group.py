"""A communicator over a torch.distributed process group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from janus_comm.accounting import Counted
from janus_comm.checked import Checked
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
from janus_comm.last_words import GRACE, LastWords

T = TypeVar("T")

# torch 2.13 has a new name for it, and warns of the old one.
_gather_evenly = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class ProcessGroupCommunicator:
    """The ranks of a process group (``torch.distributed.group.WORLD``, say).

    Rows travel as bytes, so that every dtype behaves alike on a backend that knows only some of them. Sums are an
    exchange of parts, a sum in the order of the ranks, and a gather: as many bytes as a ring moves, and the same bits
    on every rank and backend.

    When a collective fails, because another rank raised, died, left, or did not arrive within the group's timeout, it
    raises RankFailed, which says what became of which rank, at most ``min(timeout, GRACE)`` seconds later. ``timeout``
    (seconds) should be that of the group; groups that are split from it get it too, and torch's default without one.
    """

    def __init__(self, group: dist.ProcessGroup, timeout: float | None = None, words: LastWords | None = None):
        self._open_group: dist.ProcessGroup | None = group
        self._timeout = timeout
        self._parts: list[ProcessGroupCommunicator] = []
        self._calls = 0
        self._members = dist.get_process_group_ranks(group)
        self._is_part = len(self._members) < dist.get_world_size()
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        if words is None:
            grace = GRACE if timeout is None else min(GRACE, timeout)
            words = LastWords(group.get_group_store(), self._members[self.rank], dist.get_world_size(), grace)
        self._words = words

    def sum(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum of all ranks' tensors, the same bits on every rank."""
        require_plain("sum", tensor)
        require_addable("sum", tensor)
        flat = tensor.reshape(-1)
        counts = even_counts(flat.numel(), self.size)
        with self._call("sum"):
            return self._gather(self._reduce_scatter(flat, counts)(), counts)().view(tensor.shape)

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
        with self._call("gather_rows") as call:
            wait = self._gather(rows, counts)
        return self._naming(call, wait)

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
        with self._call("reduce_scatter_rows") as call:
            wait = self._reduce_scatter(rows, counts)
        return self._naming(call, wait)

    def exchange_rows(
        self, rows: Shaped[Tensor, "sent *features"], send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Shaped[Tensor, "received *features"]:
        """The rows that every rank meant for this one, in the order of the ranks."""
        require_exchange("exchange_rows", rows, send_counts, receive_counts, self.rank, self.size)
        with self._call("exchange_rows"):
            return self._exchange(rows, send_counts, receive_counts)()

    def gather_object(self, value: T) -> list[T]:
        """Copies of all ranks' values, in the order of the ranks."""
        values: list[T | None] = [None] * self.size
        with self._call("gather_object"):
            dist.all_gather_object(values, value, group=self._group)
        return values  # type: ignore[return-value]  # every entry has been replaced by a rank's value

    def barrier(self) -> None:
        """Return when every rank has arrived."""
        with self._call("barrier"):
            dist.barrier(group=self._group)

    def split(self, color: int) -> Communicator:
        """The group of the ranks that gave the same colour, in their present order."""
        colors = self.gather_object(color)
        members = [member for member, its_color in zip(self._members, colors, strict=True) if its_color == color]
        if len(members) == 1:
            return SingleRank()
        wait = None if self._timeout is None else timedelta(seconds=self._timeout)
        with self._call("split"):
            # Local synchronisation: only members call, so that groups of different colours need no common order.
            group = dist.new_group(members, timeout=wait, use_local_synchronization=True)
        part = ProcessGroupCommunicator(group, self._timeout, self._words)
        self._parts.append(part)
        part.join()
        return part

    def join(self) -> None:
        """Return when every rank has come this far: one that ended earlier would break the connections being made."""
        with self._call("join"):
            dist.barrier(group=self._group)
        self._calls = 0

    @contextmanager
    def lend(self, operation: str) -> Iterator[dist.ProcessGroup]:
        """The group, for one operation of torch's own; its failures are told as those of a collective are."""
        with self._call(operation):
            yield self._group

    def report(self, error: BaseException | None) -> None:
        """Tell the others how this rank ends, for their messages: by an error of its own, or with ``None`` in peace."""
        if error is None:
            self._words.left()
        elif not isinstance(error, RankFailed):  # another rank's end, and that rank's to report
            self._words.failed(error)

    def keep_words_readable(self) -> None:
        """After an error, once the groups are destroyed: the rank that may keep the store stays for the others."""
        if self.rank == 0:
            self._words.keep_readable()

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

    @contextmanager
    def _call(self, operation: str) -> Iterator[str]:
        self._calls += 1
        among = f" of ranks {self._members}" if self._is_part else ""
        call = f"{operation} (call {self._calls}{among})"
        with self._explaining(call):
            yield call

    def _naming(self, call: str, wait: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """The same wait, whose failure is that of the call."""

        def named() -> Tensor:
            with self._explaining(call):
                return wait()

        return named

    @contextmanager
    def _explaining(self, call: str) -> Iterator[None]:
        try:
            yield
        except (RankFailed, torch.OutOfMemoryError):
            raise
        except RuntimeError as error:
            raise RankFailed(self._words.explain(self._members, call, error)) from error

    def _gather(self, rows: Tensor, counts: Sequence[int]) -> Callable[[], Tensor]:
        if min(counts) == max(counts):
            gathered, own = rows.new_empty(sum(counts), *rows.shape[1:]), _as_bytes(rows)
            if not gathered.numel():
                return lambda: gathered
            work = _gather_evenly(_as_bytes(gathered), own, group=self._group, async_op=True)
            return lambda: _when(work, gathered, own)
        # A gather of uneven parts is an exchange in which everyone gets the same rows: no padding on the wire.
        copies = rows.repeat(self.size, *(1 for _ in rows.shape[1:]))
        return self._exchange(copies, [counts[self.rank]] * self.size, counts)

    def _reduce_scatter(self, rows: Tensor, counts: Sequence[int]) -> Callable[[], Tensor]:
        own = counts[self.rank]
        received = self._exchange(rows, counts, [own] * self.size)
        return lambda: sum_in_rank_order(received().split(own) if own else [received()])

    def _exchange(
        self, rows: Tensor, send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Callable[[], Tensor]:
        received, sent = rows.new_empty(sum(receive_counts), *rows.shape[1:]), _as_bytes(rows)
        width = row_bytes(rows)
        work = dist.all_to_all_single(
            _as_bytes(received),
            sent,
            [count * width for count in receive_counts],
            [count * width for count in send_counts],
            group=self._group,
            async_op=True,
        )
        return lambda: _when(work, received, sent)


@contextmanager
def torch_group(communicator: Communicator, operation: str) -> Iterator[dist.ProcessGroup | None]:
    """The process group under a communicator, for torch's own tools, which call collectives of their own meanwhile.

    None on one rank. What such tools do is neither counted nor checked. Every rank calls it; an error of the group
    inside becomes RankFailed, which names the operation.

    Raises TypeError for ranks that are no processes.
    """
    while isinstance(communicator, (Checked, Counted)):
        communicator = communicator._inner
    if isinstance(communicator, SingleRank):
        yield None
        return
    if not isinstance(communicator, ProcessGroupCommunicator):
        raise TypeError(f"{type(communicator).__name__} has no process group that {operation} could use")
    with communicator.lend(operation) as group:
        yield group


def _when(work: dist.Work, result: Tensor, *needed: Tensor) -> Tensor:
    """The result once the work is done; what the work needs stays until then."""
    work.wait()
    return result


def _as_bytes(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, " bytes"]:
    # A tensor of one element may be contiguous with a stride of zero, which has no view as bytes.
    return tensor.detach().contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
