"""What ranks can say to each other: the communicator, its one-rank identity, and agreement on errors."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from janus_comm.failure import portable

T = TypeVar("T")

_ADDABLE_FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_ADDABLE_INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Communicator(Protocol):
    """A fixed group of ranks and the collectives they call together, on values only.

    Every rank of the group calls the same methods in the same order. Rows are cut along dim 0; counts are numbers of
    rows and may be zero. Results are new tensors of the argument's dtype, without a graph: for derivatives use
    :func:`janus_comm.all_reduce` and its siblings. Any real dtype travels; sums of half precision are accumulated in
    float32 and rounded once, and every sum is taken in the order of the ranks, so that it has the same bits everywhere.
    """

    @property
    def rank(self) -> int:
        """This rank's index in the group, from 0."""
        ...

    @property
    def size(self) -> int:
        """The number of ranks in the group."""
        ...

    def sum(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum of all ranks' tensors, the same bits on every rank."""
        ...

    def gather_rows(
        self, rows: Shaped[Tensor, "own *features"], counts: Sequence[int]
    ) -> Shaped[Tensor, "all *features"]:
        """All ranks' rows in the order of the ranks; ``counts[r]`` rows come from rank r."""
        ...

    def reduce_scatter_rows(
        self, rows: Shaped[Tensor, "all *features"], counts: Sequence[int]
    ) -> Shaped[Tensor, "own *features"]:
        """This rank's ``counts[rank]`` rows of the sum of all ranks' rows."""
        ...

    def exchange_rows(
        self, rows: Shaped[Tensor, "sent *features"], send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Shaped[Tensor, "received *features"]:
        """The rows that every rank meant for this one, in the order of the ranks.

        The first ``send_counts[0]`` rows go to rank 0, the next ``send_counts[1]`` to rank 1, and so on.
        """
        ...

    def start_gather_rows(
        self, rows: Shaped[Tensor, "own *features"], counts: Sequence[int]
    ) -> Callable[[], Shaped[Tensor, "all *features"]]:
        """`gather_rows` that goes on while the rank does other things; what comes back waits for the result."""
        ...

    def start_reduce_scatter_rows(
        self, rows: Shaped[Tensor, "all *features"], counts: Sequence[int]
    ) -> Callable[[], Shaped[Tensor, "own *features"]]:
        """`reduce_scatter_rows` that goes on while the rank does other things; what comes back waits for the result."""
        ...

    def gather_object(self, value: T) -> list[T]:
        """Copies of all ranks' values (anything that pickles), in the order of the ranks."""
        ...

    def barrier(self) -> None:
        """Return when every rank has arrived."""
        ...

    def split(self, color: int) -> Communicator:
        """The group of the ranks that gave the same colour, in their present order."""
        ...


class SingleRank:
    """The group of one rank: every sum and every exchange is the identity."""

    rank = 0
    size = 1

    def sum(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """A copy of the tensor."""
        require_plain("sum", tensor)
        require_addable("sum", tensor)
        return tensor.clone()

    def gather_rows(self, rows: Shaped[Tensor, "n *features"], counts: Sequence[int]) -> Shaped[Tensor, "n *features"]:
        """A copy of the rows."""
        require_own_rows("gather_rows", rows, counts, 0, 1)
        return rows.clone()

    def reduce_scatter_rows(
        self, rows: Shaped[Tensor, "n *features"], counts: Sequence[int]
    ) -> Shaped[Tensor, "n *features"]:
        """A copy of the rows."""
        require_all_rows("reduce_scatter_rows", rows, counts, 1)
        require_addable("reduce_scatter_rows", rows)
        return rows.clone()

    def exchange_rows(
        self, rows: Shaped[Tensor, "n *features"], send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Shaped[Tensor, "n *features"]:
        """A copy of the rows."""
        require_exchange("exchange_rows", rows, send_counts, receive_counts, 0, 1)
        return rows.clone()

    def start_gather_rows(
        self, rows: Shaped[Tensor, "n *features"], counts: Sequence[int]
    ) -> Callable[[], Shaped[Tensor, "n *features"]]:
        """A copy of the rows, at once."""
        copy = self.gather_rows(rows, counts)
        return lambda: copy

    def start_reduce_scatter_rows(
        self, rows: Shaped[Tensor, "n *features"], counts: Sequence[int]
    ) -> Callable[[], Shaped[Tensor, "n *features"]]:
        """A copy of the rows, at once."""
        copy = self.reduce_scatter_rows(rows, counts)
        return lambda: copy

    def gather_object(self, value: T) -> list[T]:
        """A list of one copy of the value."""
        copy: T = pickle.loads(pickle.dumps(value))
        return [copy]

    def barrier(self) -> None:
        """Return at once."""

    def split(self, color: int) -> Communicator:
        """The same group."""
        return self


def agree(communicator: Communicator, error: BaseException | None) -> None:
    """Every rank raises or none does.

    Ranks that prepare on their own (read files, check a config) catch what goes wrong and hand it in here before the
    first collective; without an error they hand in ``None``.

    Raises: on every rank, the error of the lowest rank that has one, with a note of where it comes from.
    """
    own = None if error is None else portable(error, communicator.rank, communicator.size)
    for raised in communicator.gather_object(own):
        if raised is not None:
            raise raised


def sum_in_rank_order(parts: Sequence[Shaped[Tensor, "*shape"]]) -> Shaped[Tensor, "*shape"]:
    """The sum of one or more equal-shaped tensors from first to last; half precision is summed in float32."""
    dtype = parts[0].dtype
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    total = parts[0].to(wide, copy=True)
    for part in parts[1:]:
        total += part
    return total.to(dtype)


def even_counts(rows: int, size: int) -> list[int]:
    """Row counts of ``size`` ranks that differ by at most one; the first ranks have more."""
    return [rows // size + (rank < rows % size) for rank in range(size)]


def row_bytes(rows: Shaped[Tensor, "n *features"]) -> int:
    """The bytes of one row."""
    return rows.element_size() * rows.shape[1:].numel()


def require_plain(operation: str, tensor: Tensor) -> None:
    """Refuse tensors that a raw collective would silently cut from their graph, and dtypes without a meaning here."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{operation} has no derivative, but its tensor requires grad; "
            "use the function of janus_comm.collectives, or pass tensor.detach()"
        )
    if tensor.is_complex():
        raise TypeError(f"{operation} takes real tensors, not {tensor.dtype}; pass torch.view_as_real(tensor)")


def require_addable(operation: str, tensor: Tensor) -> None:
    """Refuse what torch does not add, and booleans: whether they should count or be a logical or is the caller's."""
    if tensor.dtype not in (*_ADDABLE_FLOATING, *_ADDABLE_INTEGER):
        name = "booleans" if tensor.dtype is torch.bool else str(tensor.dtype)
        wider = "float32" if tensor.is_floating_point() else "int64"
        raise TypeError(f"{operation} cannot add {name}; pass tensor.to(torch.{wider})")


def require_counts(operation: str, name: str, counts: Sequence[int], size: int) -> None:
    """Refuse counts that are not one non-negative number a rank."""
    if len(counts) != size:
        raise ValueError(f"{operation}: {name} has {len(counts)} entries for {size} ranks; give one row count a rank")
    if any(count < 0 for count in counts):
        raise ValueError(f"{operation}: {name}={list(counts)} has a negative row count")


def require_all_rows(operation: str, rows: Tensor, counts: Sequence[int], size: int, name: str = "counts") -> None:
    """Refuse rows whose number is not the sum of the counts."""
    require_plain(operation, rows)
    require_counts(operation, name, counts, size)
    if rows.dim() == 0 or rows.shape[0] != sum(counts):
        raise ValueError(
            f"{operation}: {name}={list(counts)} means {sum(counts)} rows, but the tensor has shape {list(rows.shape)}"
        )


def require_own_rows(operation: str, rows: Tensor, counts: Sequence[int], rank: int, size: int) -> None:
    """Refuse rows whose number is not this rank's count."""
    require_plain(operation, rows)
    require_counts(operation, "counts", counts, size)
    if rows.dim() == 0 or rows.shape[0] != counts[rank]:
        raise ValueError(
            f"{operation}: counts[{rank}]={counts[rank]} rows on this rank, but the tensor has shape {list(rows.shape)}"
        )


def require_exchange(
    operation: str, rows: Tensor, send_counts: Sequence[int], receive_counts: Sequence[int], rank: int, size: int
) -> None:
    """Refuse an exchange whose counts fit neither the rows nor, for the rows a rank keeps, each other."""
    require_all_rows(operation, rows, send_counts, size, "send_counts")
    require_counts(operation, "receive_counts", receive_counts, size)
    if send_counts[rank] != receive_counts[rank]:
        raise ValueError(
            f"{operation}: rank {rank} sends {send_counts[rank]} rows to itself but expects {receive_counts[rank]}"
        )
