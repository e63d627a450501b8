"""Parameters sharded block by block while forces are trained: gather nodes, and stock FSDP2 by way of tangents."""

from janus_comm.sharding.dtensor import as_dtensors, make_device_mesh
from janus_comm.sharding.gather import GatherNodes
from janus_comm.sharding.initialize import Start
from janus_comm.sharding.stock import StockShards

__all__ = ["GatherNodes", "Start", "StockShards", "as_dtensors", "make_device_mesh"]
