"""Shards in the form of DTensors, which optimisers, clipping and `torch.distributed.checkpoint` know."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from janus_comm.mesh import Mesh
from janus_comm.sharding.bucket import ShardedTensors, plain_rows, strides_of
from janus_comm.sharding.layout import Slot


def make_device_mesh(mesh: Mesh, device: torch.device) -> DeviceMesh | None:
    """The same mesh of ranks for torch's own tools: (replica, unit), or (unit,) where there is one replica.

    All processes of the job call it, and the mesh holds all of them. None on one rank without a process group.
    """
    if mesh.world.size == 1 and not dist.is_initialized():
        return None
    if mesh.replica == 1:
        return init_device_mesh(device.type, (mesh.unit,), mesh_dim_names=("unit",))
    return init_device_mesh(device.type, (mesh.replica, mesh.unit), mesh_dim_names=("replica", "unit"))


def as_dtensors(device_mesh: DeviceMesh | None) -> ShardedTensors:
    """Rows as DTensors cut along their first dimension, the same on every replica, as FSDP2 and HSDP have them.

    Ordinary tensors where there is no mesh, and the rows are all there are.
    """
    if device_mesh is None:
        return plain_rows
    placements: list[Placement] = [Replicate()] * (device_mesh.ndim - 1) + [Shard(0)]

    def presented(rows: Tensor, slot: Slot) -> Tensor:
        shape = torch.Size(slot.shape or (1,))
        return DTensor.from_local(rows, device_mesh, placements, run_check=False, shape=shape, stride=strides_of(shape))

    return presented


def offsets_of(tensor: Tensor) -> tuple[int, ...]:
    """Where this rank's part of a DTensor begins in the whole, in each dimension."""
    assert isinstance(tensor, DTensor)
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(offsets)
