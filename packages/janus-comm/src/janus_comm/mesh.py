"""The mesh of ranks: replicas of units.

The ranks of a *unit* work on one batch together; *replicas* hold the same things and average gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

from janus_comm.communicator import Communicator
from janus_comm.failure import LaunchError


@dataclass(frozen=True)
class Mesh:
    """Ranks in a grid of ``replica`` rows and ``unit`` columns; rank = replica_index × unit + unit_index."""

    replica: int
    unit: int
    world: Communicator
    replica_axis: Communicator
    """The ranks with this rank's ``unit_index``, one of each replica."""
    unit_axis: Communicator
    """The ranks of this rank's unit."""

    @property
    def rank(self) -> int:
        """This rank's index among all."""
        return self.world.rank

    @property
    def replica_index(self) -> int:
        """Which replica this rank belongs to."""
        return self.world.rank // self.unit

    @property
    def unit_index(self) -> int:
        """Which place this rank has in its unit."""
        return self.world.rank % self.unit


def make_mesh(world: Communicator, replica: int, unit: int) -> Mesh:
    """The mesh of ``replica`` × ``unit`` ranks over a communicator of exactly as many.

    Every rank calls it with the same numbers. Raises LaunchError when these do not fit the ranks: on every rank, before
    any of them talks to another.
    """
    if replica < 1 or unit < 1:
        raise LaunchError(f"mesh.replica={replica} × mesh.unit={unit}: both must be at least 1")
    needed = replica * unit
    if needed != world.size:
        fitting = f"mesh.replica={world.size // unit}"
        if world.size % unit:
            fitting = f"mesh.replica={world.size} mesh.unit=1"
        ranks = "1 rank" if needed == 1 else f"{needed} ranks"
        was = "1 was" if world.size == 1 else f"{world.size} were"
        start = "without torchrun" if needed == 1 else f"with torchrun --nproc-per-node {needed}"
        raise LaunchError(
            f"mesh.replica={replica} × mesh.unit={unit} needs {ranks}, but {was} launched; "
            f"start {start} or set {fitting}"
        )
    unit_axis = world.split(world.rank // unit)
    replica_axis = world.split(world.rank % unit)
    return Mesh(replica, unit, world, replica_axis, unit_axis)
