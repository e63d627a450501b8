"""Calls and bytes of communication, counted by kind and phase, and the formulas that predict them.

A byte is *sent* by a rank when it must leave it for another rank: rows that a rank keeps cost nothing, and one rank
alone sends nothing. With R ranks, row_bytes the bytes of one row and c[r] the row counts, rank k sends

* ``exchange_rows``: (Σ send_counts − send_counts[k]) × row_bytes;
* a compressed exchange of float32 or float64 rows of F entries: 2 × (F × (Σ send_counts − send_counts[k]) + scales),
  one scale for each group with rows for another rank, counted for each such rank;
* ``gather_rows``: (R − 1) × c[k] × row_bytes;
* ``reduce_scatter_rows``: (Σ c − c[k]) × row_bytes;
* ``sum`` of E elements of b bytes: a reduce-scatter and a gather of parts e[r] of E as even as can be, the first ones
  larger: (E − e[k] + (R − 1) × e[k]) × b, and 2 (R − 1) × E × b over all ranks.

Objects and barriers are control traffic: their calls are counted, their bytes are not. How a backend cuts a message or
which way it takes does not enter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from jaxtyping import Shaped
from torch import Tensor

from janus_comm.communicator import Communicator, even_counts, row_bytes
from janus_comm.failure import RankFailed, in_phase

T = TypeVar("T")


def bytes_of_exchange(send_counts: Sequence[int], row_bytes: int, rank: int) -> int:
    """Bytes a rank sends in ``exchange_rows``."""
    return (sum(send_counts) - send_counts[rank]) * row_bytes


def bytes_of_compressed_exchange(
    send_counts: Sequence[int], scale_counts: Sequence[int], features: int, rank: int
) -> int:
    """Bytes a rank sends in an exchange of rows of ``features`` numbers as FP16; its adjoint swaps sent and received.

    ``scale_counts[r]`` is how many groups have rows for rank r.
    """
    return bytes_of_exchange(send_counts, 2 * features, rank) + bytes_of_exchange(scale_counts, 2, rank)


def bytes_of_gather(counts: Sequence[int], row_bytes: int, rank: int) -> int:
    """Bytes a rank sends in ``gather_rows``."""
    return (len(counts) - 1) * counts[rank] * row_bytes


def bytes_of_reduce_scatter(counts: Sequence[int], row_bytes: int, rank: int) -> int:
    """Bytes a rank sends in ``reduce_scatter_rows``."""
    return (sum(counts) - counts[rank]) * row_bytes


def bytes_of_sum(elements: int, element_bytes: int, rank: int, size: int) -> int:
    """Bytes a rank sends in ``sum``."""
    parts = even_counts(elements, size)
    return bytes_of_reduce_scatter(parts, element_bytes, rank) + bytes_of_gather(parts, element_bytes, rank)


class Tally(NamedTuple):
    """How often something was called, and how many bytes this rank sent in it."""

    calls: int
    bytes_sent: int


class Accounting:
    """One rank's tallies by kind of communication and phase of the step."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._phase = ""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is recorded inside belongs to this phase, or to a phase inside it; outside all, the phase is ``""``.

        An error that is raised inside gets a note of the phase.
        """
        outer, self._phase = self._phase, name
        try:
            yield
        except BaseException as error:
            if not isinstance(error, RankFailed):  # whose message has it, from Counted
                error.add_note(in_phase(name))
            raise
        finally:
            self._phase = outer

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """What is recorded inside is forgotten afterwards."""
        kept = dict(self._tallies)
        try:
            yield
        finally:
            self._tallies = kept

    @property
    def present_phase(self) -> str:
        """The innermost phase that is under way, ``""`` outside all."""
        return self._phase

    def record(self, kind: str, bytes_sent: int) -> None:
        """Count one call of a kind in the present phase."""
        calls, total = self._tallies.get((kind, self._phase), Tally(0, 0))
        self._tallies[kind, self._phase] = Tally(calls + 1, total + bytes_sent)

    @property
    def tallies(self) -> dict[tuple[str, str], Tally]:
        """All tallies by (kind, phase), in order of first call."""
        return dict(self._tallies)

    def total(self, kind: str | None = None, phase: str | None = None) -> Tally:
        """The sum of the tallies of a kind, of a phase, of both, or of everything."""
        chosen = [
            tally
            for (its_kind, its_phase), tally in self._tallies.items()
            if kind in (None, its_kind) and phase in (None, its_phase)
        ]
        return Tally(sum(tally.calls for tally in chosen), sum(tally.bytes_sent for tally in chosen))


class Counted:
    """A communicator that does what another does and records it.

    The kind is the name of the method, or ``kind`` for all of them where one purpose is to be told apart ("halo"). A
    failure of other ranks is raised with the phase it was met in.
    """

    def __init__(self, communicator: Communicator, accounting: Accounting, kind: str | None = None):
        self._inner = communicator
        self._accounting = accounting
        self._kind = kind
        self.rank = communicator.rank
        self.size = communicator.size

    def _record(self, operation: str, bytes_sent: int) -> None:
        self._accounting.record(self._kind or operation, bytes_sent)

    @contextmanager
    def _naming_phase(self) -> Iterator[None]:
        try:
            yield
        except RankFailed as error:
            phase = self._accounting.present_phase
            if not phase:
                raise
            raise RankFailed(f"{error}, {in_phase(phase)}") from error

    def sum(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum of all ranks' tensors."""
        with self._naming_phase():
            result = self._inner.sum(tensor)
        self._record("sum", bytes_of_sum(tensor.numel(), tensor.element_size(), self.rank, self.size))
        return result

    def gather_rows(
        self, rows: Shaped[Tensor, "own *features"], counts: Sequence[int]
    ) -> Shaped[Tensor, "all *features"]:
        """All ranks' rows in the order of the ranks."""
        with self._naming_phase():
            result = self._inner.gather_rows(rows, counts)
        self._record("gather_rows", bytes_of_gather(counts, row_bytes(rows), self.rank))
        return result

    def reduce_scatter_rows(
        self, rows: Shaped[Tensor, "all *features"], counts: Sequence[int]
    ) -> Shaped[Tensor, "own *features"]:
        """This rank's rows of the sum of all ranks' rows."""
        with self._naming_phase():
            result = self._inner.reduce_scatter_rows(rows, counts)
        self._record("reduce_scatter_rows", bytes_of_reduce_scatter(counts, row_bytes(rows), self.rank))
        return result

    def exchange_rows(
        self, rows: Shaped[Tensor, "sent *features"], send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Shaped[Tensor, "received *features"]:
        """The rows that every rank meant for this one."""
        with self._naming_phase():
            result = self._inner.exchange_rows(rows, send_counts, receive_counts)
        self._record("exchange_rows", bytes_of_exchange(send_counts, row_bytes(rows), self.rank))
        return result

    def start_gather_rows(
        self, rows: Shaped[Tensor, "own *features"], counts: Sequence[int]
    ) -> Callable[[], Shaped[Tensor, "all *features"]]:
        """`gather_rows` that goes on meanwhile, counted where it starts."""
        with self._naming_phase():
            wait = self._inner.start_gather_rows(rows, counts)
        self._record("gather_rows", bytes_of_gather(counts, row_bytes(rows), self.rank))
        return lambda: self._finish(wait)

    def start_reduce_scatter_rows(
        self, rows: Shaped[Tensor, "all *features"], counts: Sequence[int]
    ) -> Callable[[], Shaped[Tensor, "own *features"]]:
        """`reduce_scatter_rows` that goes on meanwhile, counted where it starts."""
        with self._naming_phase():
            wait = self._inner.start_reduce_scatter_rows(rows, counts)
        self._record("reduce_scatter_rows", bytes_of_reduce_scatter(counts, row_bytes(rows), self.rank))
        return lambda: self._finish(wait)

    def _finish(self, wait: Callable[[], Tensor]) -> Tensor:
        with self._naming_phase():
            return wait()

    def gather_object(self, value: T) -> list[T]:
        """Copies of all ranks' values."""
        self._record("gather_object", 0)
        with self._naming_phase():
            return self._inner.gather_object(value)

    def barrier(self) -> None:
        """Return when every rank has arrived."""
        self._record("barrier", 0)
        with self._naming_phase():
            self._inner.barrier()

    def of_kind(self, kind: str) -> Counted:
        """The same ranks, with what they send counted under another kind."""
        return Counted(self._inner, self._accounting, kind)

    def split(self, color: int) -> Communicator:
        """The group of the ranks that gave the same colour, counted in the same accounting."""
        with self._naming_phase():
            part = self._inner.split(color)
        return Counted(part, self._accounting, self._kind)
