"""From torchrun's environment to a communicator of all ranks, and back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from janus_comm.communicator import Communicator, SingleRank
from janus_comm.failure import LaunchError
from janus_comm.process_group import ProcessGroupCommunicator

_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """What a process is told by its launcher: all ranks, and the device that is its own."""

    world: Communicator
    device: torch.device


@contextmanager
def launch(device: str | torch.device = "cpu") -> Iterator[Launch]:
    """Join the ranks that torchrun started, for as long as the context lasts.

    Reads WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Without WORLD_SIZE, or with one rank, there is no
    process group and ``world`` is :class:`~janus_comm.SingleRank`. Several ranks talk through gloo on ``"cpu"``, and
    through NCCL on ``"cuda"``, where each takes the GPU of its local rank.

    Raises LaunchError when the environment is incomplete, the device is missing, or a process group exists already.
    """
    size = _world_size(os.environ)
    local_rank = int(os.environ["LOCAL_RANK"]) if size > 1 else 0
    own_device = _device_of_rank(torch.device(device), local_rank)
    if size == 1:
        yield Launch(SingleRank(), own_device)
        return
    if dist.is_initialized():
        raise LaunchError(
            "a process group exists already; make a communicator of it with "
            "ProcessGroupCommunicator(torch.distributed.group.WORLD) instead of launching again"
        )
    if own_device.type == "cuda":
        torch.cuda.set_device(own_device)
        dist.init_process_group("nccl", device_id=own_device)
    else:
        dist.init_process_group("gloo")
    assert dist.group.WORLD is not None
    world = ProcessGroupCommunicator(dist.group.WORLD)
    try:
        yield Launch(world, own_device)
    finally:
        world.close()
        dist.destroy_process_group()


def _world_size(environment: Mapping[str, str]) -> int:
    try:
        size = int(environment.get("WORLD_SIZE", "1"))
    except ValueError:
        size = 0
    if size < 1:
        raise LaunchError(f"WORLD_SIZE={environment['WORLD_SIZE']} is not a number of ranks; start with torchrun")
    missing = [name for name in _NEEDED if name not in environment]
    if size > 1 and missing:
        raise LaunchError(
            f"WORLD_SIZE={size} is set but {', '.join(missing)} is not; "
            f"start with torchrun --nproc-per-node {size}, or unset WORLD_SIZE to run on one rank"
        )
    return size


def _device_of_rank(device: torch.device, local_rank: int) -> torch.device:
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise LaunchError(f"device={device} is not supported; use cpu or cuda")
    present = torch.cuda.device_count()
    index = local_rank if device.index is None else device.index
    if index >= present:
        raise LaunchError(
            f"device={device} on local rank {local_rank} needs GPU {index}, but torch sees {present}; "
            "use device=cpu or start fewer ranks a node"
        )
    return torch.device("cuda", index)
