"""Parameters sharded block by block while forces are trained: gather nodes, and stock FSDP2 by way of tangents."""

from janus_comm.sharding.dtensor import as_dtensors, make_device_mesh, offsets_of
from janus_comm.sharding.gather import GatherNodes
from janus_comm.sharding.initialize import Start
from janus_comm.sharding.stock import StockShards
from janus_comm.sharding.update import BucketwiseUpdate, clip_gradients, gradient_norm

__all__ = [
    "BucketwiseUpdate",
    "GatherNodes",
    "Start",
    "StockShards",
    "as_dtensors",
    "clip_gradients",
    "gradient_norm",
    "make_device_mesh",
    "offsets_of",
]
