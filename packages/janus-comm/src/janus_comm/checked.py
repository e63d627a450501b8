"""Ranks that compare what they are about to do before they do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from jaxtyping import Shaped
from torch import Tensor

from janus_comm.communicator import (
    Communicator,
    require_addable,
    require_all_rows,
    require_exchange,
    require_own_rows,
    require_plain,
)
from janus_comm.failure import RankFailed, describe

T = TypeVar("T")

Counts = tuple[Sequence[int], Sequence[int]]
"""Rows to and from each rank."""


class Checked:
    """A communicator that does what another does once all ranks agree on what that is.

    Before each call every rank tells the others its number, operation, dtype, shape and row counts: one more exchange
    of small objects a call, and one wait for the device where these travel by it. For looking for a mistake; without
    the wrapper nothing of it runs.

    Each method raises RankFailed on all ranks, before any data moves, when the ranks disagree (the message says who
    calls what), or when the arguments of one are refused (that rank raises its own error).
    """

    def __init__(self, communicator: Communicator):
        self._inner = communicator
        self._calls = 0
        self.rank = communicator.rank
        self.size = communicator.size

    def sum(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum of all ranks' tensors."""

        def require() -> None:
            require_plain("sum", tensor)
            require_addable("sum", tensor)

        self._agree(f"sum of {kind_of(tensor, 0)}", require)
        return self._inner.sum(tensor)

    def gather_rows(
        self, rows: Shaped[Tensor, "own *features"], counts: Sequence[int]
    ) -> Shaped[Tensor, "all *features"]:
        """All ranks' rows in the order of the ranks."""
        return self.start_gather_rows(rows, counts)()

    def start_gather_rows(
        self, rows: Shaped[Tensor, "own *features"], counts: Sequence[int]
    ) -> Callable[[], Shaped[Tensor, "all *features"]]:
        """`gather_rows` that goes on meanwhile, once all ranks agree."""
        self._agree(
            f"gather_rows of {kind_of(rows, 1)} by {list(counts)}",
            lambda: require_own_rows("gather_rows", rows, counts, self.rank, self.size),
        )
        return self._inner.start_gather_rows(rows, counts)

    def reduce_scatter_rows(
        self, rows: Shaped[Tensor, "all *features"], counts: Sequence[int]
    ) -> Shaped[Tensor, "own *features"]:
        """This rank's rows of the sum of all ranks' rows."""
        return self.start_reduce_scatter_rows(rows, counts)()

    def start_reduce_scatter_rows(
        self, rows: Shaped[Tensor, "all *features"], counts: Sequence[int]
    ) -> Callable[[], Shaped[Tensor, "own *features"]]:
        """`reduce_scatter_rows` that goes on meanwhile, once all ranks agree."""

        def require() -> None:
            require_all_rows("reduce_scatter_rows", rows, counts, self.size)
            require_addable("reduce_scatter_rows", rows)

        self._agree(f"reduce_scatter_rows of {kind_of(rows, 1)} by {list(counts)}", require)
        return self._inner.start_reduce_scatter_rows(rows, counts)

    def exchange_rows(
        self, rows: Shaped[Tensor, "sent *features"], send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Shaped[Tensor, "received *features"]:
        """The rows that every rank meant for this one."""
        self._agree(
            f"exchange_rows of {kind_of(rows, 1)}",
            lambda: require_exchange("exchange_rows", rows, send_counts, receive_counts, self.rank, self.size),
            (list(send_counts), list(receive_counts)),
        )
        return self._inner.exchange_rows(rows, send_counts, receive_counts)

    def gather_object(self, value: T) -> list[T]:
        """Copies of all ranks' values."""
        self._agree("gather_object")
        return self._inner.gather_object(value)

    def barrier(self) -> None:
        """Return when every rank has arrived."""
        self._agree("barrier")
        self._inner.barrier()

    def split(self, color: int) -> Communicator:
        """The group of the ranks that gave the same colour, checked as well."""
        self._agree("split")
        return Checked(self._inner.split(color))

    def _agree(self, call: str, require: Callable[[], None] | None = None, counts: Counts | None = None) -> None:
        self._calls += 1
        own: Exception | None = None
        try:
            if require is not None:
                require()
        except (TypeError, ValueError) as error:
            own = error
        intent = _Intent(self._calls, call, None if own is None else describe(own), counts)
        try:
            everyone = self._inner.gather_object(intent)
        except RankFailed as error:
            raise RankFailed(f"{error}, before call {self._calls}, {call}") from error
        if own is not None:
            raise own
        wrong = _disagreement(everyone)
        if wrong is not None:
            raise RankFailed(wrong)


class _Intent(NamedTuple):
    """What a rank is about to do, and why it cannot if so."""

    number: int
    call: str
    error: str | None
    counts: Counts | None


def _disagreement(everyone: Sequence[_Intent]) -> str | None:
    for rank, intent in enumerate(everyone):
        if intent.error is not None:
            return f"rank {rank} of {len(everyone)} failed in {intent.call} (call {intent.number}): {intent.error}"
    if len({intent.number for intent in everyone}) > 1:
        told = who_does_what([f"makes call {intent.number}, {intent.call}" for intent in everyone])
        return f"ranks have called a different number of collectives: {told}"
    number, call = everyone[0].number, everyone[0].call
    if len({intent.call for intent in everyone}) > 1:
        return f"ranks disagree on call {number}: {who_does_what([f'calls {intent.call}' for intent in everyone])}"
    wrong = unmatched_counts([intent.counts for intent in everyone if intent.counts is not None])
    return None if wrong is None else f"ranks disagree on call {number}, {call}: {wrong}"


def kind_of(tensor: Tensor, first_dim: int) -> str:
    """The dtype and the shape, from one of its dimensions on, that ranks have to agree on."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape[first_dim:])}"


def who_does_what(deeds: Sequence[str]) -> str:
    """One clause for each different deed, with the ranks that do it, those of the fewest ranks last."""
    ranks: dict[str, list[int]] = {}
    for rank, deed in enumerate(deeds):
        ranks.setdefault(deed, []).append(rank)
    clauses = sorted(ranks.items(), key=lambda item: (-len(item[1]), item[1]))
    return "; ".join(f"rank {', '.join(map(str, who))} {deed}" for deed, who in clauses)


def unmatched_counts(everyone: Sequence[Counts]) -> str | None:
    """The first message of an exchange that its receiver does not expect so, if there is one."""
    for source, (sent, _) in enumerate(everyone):
        for target, (_, received) in enumerate(everyone):
            if sent[target] != received[source]:
                return (
                    f"rank {source} sends {sent[target]} rows to rank {target} in exchange_rows, "
                    f"which expects {received[source]}"
                )
    return None
