"""A gradient's way from all ranks to the shards, step by step, while the backward pass goes on."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from janus_comm.communicator import Communicator, even_counts
from janus_comm.sharding.bucket import Bucket


class Reduction:
    """A bucket's gradient on its way: added up in the unit, then over replicas in two steps, then to the shards'."""

    def __init__(self, bucket: Bucket, wait: Callable[[], Tensor], replicas: Communicator) -> None:
        self._bucket, self._wait, self._replicas = bucket, wait, replicas
        self._stage = 0 if replicas.size > 1 else 2

    def advance(self) -> bool:
        """Wait for what goes on and start what comes next; whether it is done."""
        flat, replicas = self._wait(), self._replicas
        counts = even_counts(self._bucket.layout.trained_elements, replicas.size)
        self._stage += 1
        if self._stage == 1:
            self._wait = replicas.start_reduce_scatter_rows(flat, counts)
        elif self._stage == 2:
            self._wait = replicas.start_gather_rows(flat, counts)
        else:
            self._bucket.add_gradient(flat)
        return self._stage == 3
