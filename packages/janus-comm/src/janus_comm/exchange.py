"""The exchange: the one thing that graph and expert code needs to know about other ranks.

A function that needs rows of other ranks takes an :class:`Exchange` and never sees a communicator. On one rank it is
:func:`identity_exchange`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Shaped
from torch import Tensor

from janus_comm.chain import Chain
from janus_comm.collectives import all_to_all
from janus_comm.communicator import Communicator, require_counts


class Exchange(Protocol):
    """Send rows to other ranks and get theirs, differentiable any number of times."""

    def __call__(
        self, rows: Shaped[Tensor, "sent *features"], send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Shaped[Tensor, "received *features"]:
        """The rows that every rank meant for this one, in the order of the ranks."""
        ...


def identity_exchange(
    rows: Shaped[Tensor, "n *features"], send_counts: Sequence[int], receive_counts: Sequence[int]
) -> Shaped[Tensor, "n *features"]:
    """The exchange of one rank with itself: the rows themselves.

    Raises ValueError when the counts speak of other ranks or of another number of rows.
    """
    require_counts("identity_exchange", "send_counts", send_counts, 1)
    if list(send_counts) != list(receive_counts) or rows.shape[0] != send_counts[0]:
        raise ValueError(
            f"identity_exchange: one rank gets the rows it sends, but send_counts={list(send_counts)}, "
            f"receive_counts={list(receive_counts)} and there are {rows.shape[0]} rows"
        )
    return rows


def make_exchange(communicator: Communicator, chain: Chain | None = None) -> Exchange:
    """The exchange between the ranks of a communicator, its calls ordered by the chain.

    With a chain the exchange serves one evaluation, the chain's. Without one, each call is differentiable by itself and
    their order in a backward pass is autograd's: enough for a single exchange. On one rank it is the identity.
    """
    if communicator.size == 1:
        return identity_exchange

    def exchange(
        rows: Shaped[Tensor, "sent *features"], send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Shaped[Tensor, "received *features"]:
        return all_to_all(rows, communicator, send_counts, receive_counts, chain)

    return exchange
