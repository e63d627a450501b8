"""Collectives with derivatives of every order, the replica × unit mesh, launching and accounting."""

from janus_comm.accounting import Accounting, Counted, Tally
from janus_comm.chain import Chain, KeptResults, connect
from janus_comm.checked import Checked
from janus_comm.collectives import all_gather, all_reduce, all_to_all, reduce_scatter
from janus_comm.communicator import Communicator, SingleRank, agree
from janus_comm.compression import MeasuredError, make_compressed_exchange, plan_compression
from janus_comm.exchange import Exchange, identity_exchange, make_exchange
from janus_comm.failure import LaunchError, RankFailed
from janus_comm.halo import make_halo, plan_halo
from janus_comm.launch import Launch, launch
from janus_comm.launchers import Place, place_of
from janus_comm.memory import MemoryAccounting
from janus_comm.mesh import Mesh, make_mesh
from janus_comm.process_group import ProcessGroupCommunicator, torch_group
from janus_comm.routes import Evaluated, by_double_backward, by_tangent, evaluate
from janus_comm.tangent_rules import MissingDerivative
from janus_comm.tangents import carry_tangents

__all__ = [
    "Accounting",
    "Chain",
    "Checked",
    "Communicator",
    "Counted",
    "Evaluated",
    "Exchange",
    "KeptResults",
    "Launch",
    "LaunchError",
    "MeasuredError",
    "MemoryAccounting",
    "Mesh",
    "MissingDerivative",
    "Place",
    "ProcessGroupCommunicator",
    "RankFailed",
    "SingleRank",
    "Tally",
    "agree",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "by_double_backward",
    "by_tangent",
    "carry_tangents",
    "connect",
    "evaluate",
    "identity_exchange",
    "launch",
    "make_compressed_exchange",
    "make_exchange",
    "make_halo",
    "make_mesh",
    "place_of",
    "plan_compression",
    "plan_halo",
    "reduce_scatter",
    "torch_group",
]
