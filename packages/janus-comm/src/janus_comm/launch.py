"""From a launcher's environment to a communicator of all ranks, and back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from janus_comm.checked import Checked
from janus_comm.communicator import Communicator, SingleRank
from janus_comm.failure import LaunchError, RankFailed
from janus_comm.launchers import Place, place_of
from janus_comm.meeting import meet
from janus_comm.process_group import ProcessGroupCommunicator


@dataclass(frozen=True)
class Launch:
    """What a process is told by its launcher: all ranks, and the device that is its own."""

    world: Communicator
    device: torch.device


@contextmanager
def launch(
    device: str | torch.device = "cpu", timeout: float = 1800.0, checked: bool | None = None
) -> Iterator[Launch]:
    """Join the ranks that torchrun, srun, mpirun or mpiexec started, for as long as the context lasts.

    What they say is read from the environment (:func:`~janus_comm.place_of`). Without a launcher, or with one rank,
    there is no process group and ``world`` is :class:`~janus_comm.SingleRank`. Several ranks talk through gloo about
    tensors on the CPU, and with ``"cuda"``, where each takes the GPU of its local rank, through NCCL about tensors
    there. Where srun or MPI show a process one GPU only, that is its own.

    ``timeout`` is how many seconds a rank waits in a collective for the others. With ``checked`` ranks compare each
    call before they make it (:class:`~janus_comm.Checked`); when it is not given, JANUS_CHECKED=1 in the environment
    says so.

    Raises LaunchError when the environment is incomplete, the device is missing, or a process group exists already, and
    RankFailed when another rank does not join within the timeout. Inside, an error of one rank becomes RankFailed on
    the others, as soon as they wait for it.
    """
    place = place_of(os.environ)
    own_device = _device_of_rank(torch.device(device), place)
    if timeout <= 0:
        raise LaunchError(f"timeout={timeout} s leaves no rank time to arrive; give the longest wait that is in order")
    if place.size == 1:
        yield Launch(SingleRank(), own_device)
        return
    if dist.is_initialized():
        raise LaunchError(
            "a process group exists already; make a communicator of it with "
            "ProcessGroupCommunicator(torch.distributed.group.WORLD) instead of launching again"
        )
    world = _join(place, own_device, timeout)
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


def _join(place: Place, device: torch.device, timeout: float) -> ProcessGroupCommunicator:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # The group is not bound to the device: NCCL would then split groups off with a call that all ranks of the world
    # have to make, also those that have no part in the split.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # torchrun may keep the store itself, from one start of the ranks to the next.
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and place.launcher == "torchrun"
    wait = timedelta(seconds=timeout)
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            place.address, place.port, place.size, is_master=place.rank == 0 and not kept, timeout=wait,
            wait_for_workers=False, multi_tenant=True,
        )  # fmt: skip
        own = meet(store, place.rank, place.size, timeout)
        dist.init_process_group(backend, store=own, rank=place.rank, world_size=place.size, timeout=wait)
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise RankFailed(f"rank {place.rank} of {place.size} could not join the others: {reason}") from error
    assert dist.group.WORLD is not None
    return ProcessGroupCommunicator(dist.group.WORLD, timeout)


def _device_of_rank(device: torch.device, place: Place) -> torch.device:
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise LaunchError(f"device={device} is not supported; use cpu or cuda")
    present = torch.cuda.device_count()
    bound = present == 1 and place.launcher in ("srun", "mpirun", "mpiexec")
    own = 0 if bound else place.local_rank
    index = own if device.index is None else device.index
    if index >= present:
        raise LaunchError(
            f"device={device} on local rank {place.local_rank} needs GPU {index}, but torch sees {present}; "
            "use device=cpu or start fewer ranks a node"
        )
    return torch.device("cuda", index)
