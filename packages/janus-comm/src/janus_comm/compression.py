"""Exchanges of rows as FP16 with one scale per group of rows.

Rows of one group (atoms of one element, say) that go to one rank share a scale: the power of two that puts the largest
of their finite entries into [2¹⁴, 2¹⁵). So nothing overflows, and a group of small rows keeps its digits beside one of
large rows. Undoing a power of two is exact; what is lost is in rounding to FP16: at most 2⁻¹¹ of an entry, or 2⁻³⁸ of
the largest of its group in the message, whichever is more. A cotangent goes back along the same rows and gets scales
of its own.

The exponents of the scales travel with the rows, in one message, one 16-bit integer for each group that goes to a rank.
Both sides know from a plan of integers which these are. Rows that a rank keeps are not rounded.

Infinities and NaN arrive as what they are and leave the scale of the others alone. What comes out has the dtype that
went in and is added up there: no sum is taken in FP16.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float16, Int16, Int32, Int64, Shaped
from numpy.typing import ArrayLike
from torch import Tensor

from janus_comm.chain import Chain
from janus_comm.collectives import all_to_all, differentiable
from janus_comm.communicator import Communicator, require_counts
from janus_comm.exchange import Exchange, identity_exchange

# Scaled entries stay below two to this power; FP16 ends just below two to the sixteenth.
_TOP = 15
# The last FP16 number below that. What would be rounded up to the power itself stays here, still within 2⁻¹¹: undone,
# it would be infinite for the largest numbers of a dtype.
_LARGEST = 32752.0


@dataclass(frozen=True)
class Scales:
    """Which scale each row of one side of an exchange travels with."""

    rank: int
    row_counts: tuple[int, ...]
    """Rows to or from each rank."""
    counts: tuple[int, ...]
    """Scales to or from each rank: one for each group with rows there, none for the rows a rank keeps."""
    scale_of_row: Int64[Tensor, " travelling"]
    """Index, among all scales, of each row that travels."""
    group_of_scale: Int64[Tensor, " scales"]

    @property
    def kept(self) -> slice:
        """The rows that stay on this rank."""
        start = sum(self.row_counts[: self.rank])
        return slice(start, start + self.row_counts[self.rank])

    @property
    def travelling_counts(self) -> list[int]:
        """Rows that travel to or from each rank."""
        return [0 if rank == self.rank else count for rank, count in enumerate(self.row_counts)]

    def to(self, device: torch.device | str) -> Scales:
        """The same for rows on a device."""
        there = self.scale_of_row.to(device), self.group_of_scale.to(device)
        return Scales(self.rank, self.row_counts, self.counts, *there)


@dataclass(frozen=True)
class CompressionPlan:
    """The scales of the rows that a rank sends and of those it gets."""

    sent: Scales
    received: Scales

    def to(self, device: torch.device | str) -> CompressionPlan:
        """The plan for rows on a device."""
        return CompressionPlan(self.sent.to(device), self.received.to(device))


def plan_compression(
    rank: int,
    send_counts: Sequence[int],
    groups_sent: ArrayLike,
    receive_counts: Sequence[int],
    groups_received: ArrayLike,
) -> CompressionPlan:
    """The plan of an exchange on one rank, from the group (any integer) of each row that it sends and that it gets.

    A rank that does not know the groups of what it gets asks for them once::

        groups_received = communicator.exchange_rows(groups_sent, send_counts, receive_counts)

    Raises ValueError when there is not one group a row, or not one count a rank.
    """
    require_counts("plan_compression", "receive_counts", receive_counts, len(send_counts))
    if not 0 <= rank < len(send_counts):
        raise ValueError(f"plan_compression: there are counts for {len(send_counts)} ranks, and none of them is {rank}")
    return CompressionPlan(
        _scales(rank, send_counts, groups_sent, "sent"), _scales(rank, receive_counts, groups_received, "received")
    )


def _scales(rank: int, row_counts: Sequence[int], groups: ArrayLike, side: str) -> Scales:
    require_counts("plan_compression", f"the counts of rows {side}", row_counts, len(row_counts))
    numbers = np.asarray(groups, dtype=np.int64)
    if numbers.shape != (sum(row_counts),):
        raise ValueError(
            f"plan_compression: {sum(row_counts)} rows are {side}, but groups_{side} has shape {list(numbers.shape)}; "
            "give one group a row"
        )
    peers = np.repeat(np.arange(len(row_counts)), np.asarray(row_counts, dtype=np.int64))
    travels = peers != rank
    known, group_of_row = np.unique(numbers, return_inverse=True)
    # In the order of ranks and then of groups, which is the same on the other side of each message.
    keys, scale_of_row = np.unique((peers * len(known) + group_of_row)[travels], return_inverse=True)
    peer_of_scale, group_of_scale = np.divmod(keys, max(1, len(known)))
    return Scales(
        rank,
        tuple(int(count) for count in row_counts),
        tuple(np.bincount(peer_of_scale, minlength=len(row_counts)).tolist()),
        torch.from_numpy(scale_of_row),
        torch.from_numpy(known[group_of_scale]),
    )


class MeasuredError:
    """What rounding did to the rows that were sent, relative to the largest entry of their group in the message.

    Hand one to :func:`make_compressed_exchange` in a step that is to be looked at: each message, cotangents included,
    is then undone once more on the rank that sends it.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[Tensor, Tensor]] = []

    def record(self, groups: Int64[Tensor, " scales"], errors: Float[Tensor, " scales"]) -> None:
        """Note the relative error of each scale of a message."""
        self._seen.append((groups, errors))

    def by_group(self) -> dict[int, float]:
        """The largest error of each group so far; waits for the device once."""
        if not self._seen:
            return {}
        groups = torch.cat([groups for groups, _ in self._seen])
        errors = torch.cat([errors.double() for _, errors in self._seen])
        both = torch.stack([groups.double(), errors]).tolist()
        largest: dict[int, float] = {}
        for group, error in zip(*both, strict=True):
            largest[int(group)] = max(error, largest.get(int(group), 0.0))
        return dict(sorted(largest.items()))

    def largest(self) -> float:
        """The largest error so far of any group, 0 where nothing was sent; waits for the device once."""
        return max(self.by_group().values(), default=0.0)


def make_compressed_exchange(
    communicator: Communicator,
    plan: CompressionPlan,
    chain: Chain | None = None,
    measured: MeasuredError | None = None,
    dtypes: Collection[torch.dtype] = (torch.float32,),
) -> Exchange:
    """An exchange that sends rows of some dtypes as FP16 with a scale per group, cotangents of any order as well.

    It is for the rows that the plan is for, on the plan's device. ``dtypes`` may hold float32 and float64. Rows of
    others travel as they are: positions, which take the same way as what is computed from them and which three digits
    are not enough for, should be of such a dtype. On one rank it is the identity. Each pass goes through it with the
    error above, so that a derivative has one for each exchange on its way: two for a gradient (the value, the
    cotangent), three and more for the gradient of a gradient.

    Raises ValueError for another dtype. The exchange raises ValueError when it is called with other counts or rows than
    the plan's.
    """
    if not set(dtypes) <= {torch.float32, torch.float64}:
        raise ValueError(f"make_compressed_exchange: dtypes={list(dtypes)}; only float32 and float64 can be compressed")
    if communicator.size == 1:
        return identity_exchange

    def exchange(
        rows: Shaped[Tensor, "sent *features"], send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Shaped[Tensor, "received *features"]:
        planned = (plan.sent.row_counts, plan.received.row_counts)
        if (tuple(send_counts), tuple(receive_counts)) != planned or rows.shape[0] != sum(send_counts):
            raise ValueError(
                f"compressed exchange: the plan is for counts {list(planned[0])} and {list(planned[1])}, but the call "
                f"has {list(send_counts)}, {list(receive_counts)} and {rows.shape[0]} rows; plan each exchange"
            )
        there = plan.sent.scale_of_row.device
        if rows.device != there:
            raise ValueError(
                f"compressed exchange: rows are on {rows.device}, but the plan is on {there}; use plan.to(rows.device)"
            )
        if rows.dtype not in dtypes:
            return all_to_all(rows, communicator, send_counts, receive_counts, chain)
        return differentiable(
            lambda values: _exchange_compressed(values, plan.sent, plan.received, communicator, measured),
            lambda values: _exchange_compressed(values, plan.received, plan.sent, communicator, measured),
            rows,
            chain,
        )

    return exchange


def _exchange_compressed(
    rows: Float[Tensor, "given *features"],
    given: Scales,
    got: Scales,
    communicator: Communicator,
    measured: MeasuredError | None,
) -> Float[Tensor, "got *features"]:
    features = rows.shape[1:].numel()
    flat, kept = rows.detach().reshape(rows.shape[0], features), given.kept
    travelling = torch.cat([flat[: kept.start], flat[kept.stop :]])
    halves, exponents = compress(travelling, given)
    if measured is not None:
        error = _relative_error(travelling, decompress(halves, exponents, given, rows.dtype), given)
        measured.record(given.group_of_scale, error)
    message = communicator.exchange_rows(
        torch.cat(list(_packed(halves, exponents, given))), _lengths(given, features), _lengths(got, features)
    )
    arrived = decompress(*_unpacked(message, got, features), got, rows.dtype)
    here = got.kept.start
    return torch.cat([arrived[:here], flat[kept], arrived[here:]]).view(sum(got.row_counts), *rows.shape[1:])


def compress(
    rows: Float[Tensor, "travelling features"], scales: Scales
) -> tuple[Float16[Tensor, "travelling features"], Int16[Tensor, " scales"]]:
    """The rows divided by their scales and rounded, and the exponents of the scales' largest entries."""
    finite = rows.nan_to_num(0.0, 0.0, 0.0)
    _, exponents = torch.frexp(_largest_of_scale(finite, scales))
    shift = _TOP - exponents.index_select(0, scales.scale_of_row)
    others = rows - finite  # zero, but infinities and NaN where they are
    scaled = _scale_in_place(finite, shift).clamp_(-_LARGEST, _LARGEST).add_(others)
    return scaled.half(), exponents.to(torch.int16)


def decompress(
    halves: Float16[Tensor, "travelling features"],
    exponents: Int16[Tensor, " scales"],
    scales: Scales,
    dtype: torch.dtype,
) -> Float[Tensor, "travelling features"]:
    """The rows times their scales, in the dtype they had: exactly what was rounded."""
    shift = exponents.to(torch.int32).index_select(0, scales.scale_of_row) - _TOP
    return _scale_in_place(halves.to(dtype), shift)


def _largest_of_scale(finite: Float[Tensor, "travelling features"], scales: Scales) -> Float[Tensor, " scales"]:
    largest = finite.new_zeros(len(scales.group_of_scale))
    if finite.numel() == 0:
        return largest
    of_row = torch.maximum(finite.amax(1), -finite.amin(1))
    return largest.scatter_reduce_(0, scales.scale_of_row, of_row, "amax")


def _scale_in_place(
    rows: Float[Tensor, "rows features"], exponents: Int32[Tensor, " rows"]
) -> Float[Tensor, "rows features"]:
    """Multiply each row by a power of two."""
    # In two steps, so that each factor is a normal number; what is subnormal in between is zero in FP16 anyway.
    half = exponents >> 1
    for part in (half, exponents - half):
        rows *= _power_of_two(part, rows.dtype)[:, None]
    return rows


def _power_of_two(exponents: Int32[Tensor, " n"], dtype: torch.dtype) -> Float[Tensor, " n"]:
    # Written as the bits of the number: exp2 and pow are allowed to be off by one in the last place.
    if dtype is torch.float32:
        return ((exponents + 127) << 23).view(torch.float32)
    return ((exponents.to(torch.int64) + 1023) << 52).view(torch.float64)


def _relative_error(
    rows: Float[Tensor, "travelling features"], rounded: Float[Tensor, "travelling features"], scales: Scales
) -> Float[Tensor, " scales"]:
    finite = rows.nan_to_num(0.0, 0.0, 0.0)
    error = _largest_of_scale(torch.where(finite == rows, rounded - rows, 0), scales)
    largest = _largest_of_scale(finite, scales)
    return torch.where(largest > 0, error / largest, 0)


def _lengths(scales: Scales, features: int) -> list[int]:
    """How many 16-bit numbers go to or come from each rank."""
    return [rows * features + own for rows, own in zip(scales.travelling_counts, scales.counts, strict=True)]


def _packed(
    halves: Float16[Tensor, "travelling features"], exponents: Int16[Tensor, " scales"], scales: Scales
) -> Iterator[Int16[Tensor, " numbers"]]:
    """For each rank its rows, then the exponents of their scales."""
    bits = halves.view(torch.int16).split(scales.travelling_counts)
    for rows, own in zip(bits, exponents.split(scales.counts), strict=True):
        yield rows.reshape(-1)
        yield own


def _unpacked(
    message: Int16[Tensor, " numbers"], scales: Scales, features: int
) -> tuple[Float16[Tensor, "travelling features"], Int16[Tensor, " scales"]]:
    lengths = [
        length
        for rows, own in zip(scales.travelling_counts, scales.counts, strict=True)
        for length in (rows * features, own)
    ]
    parts = message.split(lengths)
    halves = torch.cat(parts[::2]).view(torch.float16).reshape(len(scales.scale_of_row), features)
    return halves, torch.cat(parts[1::2])
