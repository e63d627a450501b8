"""What there was no memory for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from janus_train.config import DataConfig
from janus_train.data.batch import FrameSource
from janus_train.failure import UserError

_NAMED = 3  # frames in a message


@contextmanager
def naming_the_batch(source: FrameSource, places: Sequence[int], config: DataConfig, what: str) -> Iterator[None]:
    """An error for want of memory inside names these frames and what they cost, and says what to change.

    Raises:
        UserError: in place of the error of torch or numpy.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{what} is too large for the memory: {_cost(source, places)}. {_advice(config)}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the host has no memory left."""
    # torch's allocator for the CPU raises what it raises for everything.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _cost(source: FrameSource, places: Sequence[int]) -> str:
    order = sorted(places, key=lambda place: -int(source.edges[place]))
    named = [
        f"{source.frames[place].origin} ({source.atoms[place]} atoms, {source.edges[place]} edges)"
        for place in order[:_NAMED]
    ]
    more = f" and {len(order) - _NAMED} more" if len(order) > _NAMED else ""
    atoms, edges = sum(int(source.atoms[p]) for p in places), sum(int(source.edges[p]) for p in places)
    return f"{len(places)} structures, {atoms} atoms, {edges} edges; largest first: {', '.join(named)}{more}"


def _advice(config: DataConfig) -> str:
    now = config.pass_edges or config.batch_edges
    return (
        f"Set data.pass_edges={max(now // 2, 1)} to compute a batch in parts with the same result, a smaller "
        f"data.batch_edges (now {config.batch_edges}), or model.checkpoint=true"
    )
