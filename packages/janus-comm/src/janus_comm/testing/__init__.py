"""Ranks for tests, as threads or as processes, and the laws every communicator obeys."""

from janus_comm.testing.launched import run_launched_ranks
from janus_comm.testing.laws import check_communicator
from janus_comm.testing.processes import run_rank_processes
from janus_comm.testing.threads import run_rank_threads

__all__ = ["check_communicator", "run_launched_ranks", "run_rank_processes", "run_rank_threads"]
