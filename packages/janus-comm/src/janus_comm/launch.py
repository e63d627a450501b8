"""From torchrun's environment to a communicator of all ranks, and back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from janus_comm.checked import Checked
from janus_comm.communicator import Communicator, SingleRank
from janus_comm.failure import LaunchError, RankFailed
from janus_comm.process_group import ProcessGroupCommunicator

_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """What a process is told by its launcher: all ranks, and the device that is its own."""

    world: Communicator
    device: torch.device


@contextmanager
def launch(
    device: str | torch.device = "cpu", timeout: float = 1800.0, checked: bool | None = None
) -> Iterator[Launch]:
    """Join the ranks that torchrun started, for as long as the context lasts.

    Reads WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Without WORLD_SIZE, or with one rank, there is no
    process group and ``world`` is :class:`~janus_comm.SingleRank`. Several ranks talk through gloo about tensors on the
    CPU, and with ``"cuda"``, where each takes the GPU of its local rank, through NCCL about tensors there.

    ``timeout`` is how many seconds a rank waits in a collective for the others. With ``checked`` ranks compare each
    call before they make it (:class:`~janus_comm.Checked`); when it is not given, JANUS_CHECKED=1 in the environment
    says so.

    Raises LaunchError when the environment is incomplete, the device is missing, or a process group exists already, and
    RankFailed when another rank does not join within the timeout. Inside, an error of one rank becomes RankFailed on
    the others, as soon as they wait for it.
    """
    size = _world_size(os.environ)
    local_rank = int(os.environ["LOCAL_RANK"]) if size > 1 else 0
    own_device = _device_of_rank(torch.device(device), local_rank)
    if timeout <= 0:
        raise LaunchError(f"timeout={timeout} s leaves no rank time to arrive; give the longest wait that is in order")
    if size == 1:
        yield Launch(SingleRank(), own_device)
        return
    if dist.is_initialized():
        raise LaunchError(
            "a process group exists already; make a communicator of it with "
            "ProcessGroupCommunicator(torch.distributed.group.WORLD) instead of launching again"
        )
    world = _join(size, own_device, timeout)
    if checked is None:
        checked = os.environ.get("JANUS_CHECKED", "0") not in ("", "0")
    ended: BaseException | None = None
    try:
        world.join()
        yield Launch(Checked(world) if checked else world, own_device)
    except BaseException as error:
        ended = error
        raise
    finally:
        world.report(ended)
        world.close()
        dist.destroy_process_group()
        if ended is not None:
            world.keep_words_readable()


def _join(size: int, device: torch.device, timeout: float) -> ProcessGroupCommunicator:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # The group is not bound to the device: NCCL would then split groups off with a call that all ranks of the world
    # have to make, also those that have no part in the split.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise RankFailed(f"rank {os.environ['RANK']} of {size} could not join the others: {reason}") from error
    assert dist.group.WORLD is not None
    return ProcessGroupCommunicator(dist.group.WORLD, timeout)


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
