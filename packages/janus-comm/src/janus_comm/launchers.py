"""What launchers tell a process in its environment: torchrun, SLURM's srun, and MPI's mpirun and mpiexec."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from janus_comm.failure import LaunchError

_FIRST_PORT, _PORTS = 20000, 12000  # below those that systems give away by themselves


@dataclass(frozen=True)
class Place:
    """Which of how many ranks a process is, and where the ranks meet.

    Attributes:
        launcher: who says so; "none" for a process that is alone.
        size: how many ranks there are.
        rank: which of them this is.
        local_rank: which of those on this host.
        address: of the host of rank 0; "" where a rank is alone.
        port: there.
    """

    launcher: str
    size: int = 1
    rank: int = 0
    local_rank: int = 0
    address: str = ""
    port: int = 0


def place_of(environment: Mapping[str, str]) -> Place:
    """The place that the nearest launcher gave this process. MASTER_ADDR and MASTER_PORT, where set, say where to meet.

    torchrun sets WORLD_SIZE; Open MPI's mpirun OMPI_COMM_WORLD_SIZE; MPICH's and Intel's mpiexec PMI_SIZE and
    MPI_LOCALRANKID; srun SLURM_STEP_ID. Each may run inside those behind it in this list. A script that sbatch or
    salloc runs is one process, whatever it was given for later.

    Raises:
        LaunchError: something is missing, or is no number.
    """
    if "WORLD_SIZE" in environment:
        return _place(environment, "torchrun", "WORLD_SIZE", "RANK", "LOCAL_RANK")
    if "OMPI_COMM_WORLD_SIZE" in environment:
        names = "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"
        return _place(environment, "mpirun", *names, "OMPI_COMM_WORLD_LOCAL_SIZE")
    if "PMI_SIZE" in environment and "MPI_LOCALRANKID" in environment:
        return _place(environment, "mpiexec", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    if "SLURM_STEP_ID" in environment:
        size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
        return _place(environment, "srun", size, "SLURM_PROCID", "SLURM_LOCALID")
    return Place("none")


def first_host(hosts: str) -> str:
    """The first of the hosts in a list as SLURM writes it: `node[003-005,010],gpu7` begins with `node003`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", hosts)
    assert first is not None  # it may match nothing, but it matches
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0])


def _place(
    environment: Mapping[str, str], launcher: str, size: str, rank: str, local_rank: str, local_size: str | None = None
) -> Place:
    ranks = _number(environment, launcher, size, least=1)
    if ranks == 1:
        return Place(launcher)
    on_one_host = local_size is not None and environment.get(local_size) == str(ranks)
    meeting = _meeting_place(environment, launcher, on_one_host)
    missing = [name for name in (rank, local_rank) if name not in environment]
    missing += [name for name, value in zip(("MASTER_ADDR", "MASTER_PORT"), meeting, strict=True) if value is None]
    if missing:
        raise LaunchError(f"{size}={ranks} is set but {', '.join(missing)} is not; {_remedy(launcher, ranks, missing)}")
    address, port = meeting
    if not str(port).isdigit():
        raise LaunchError(f"MASTER_PORT={port} is not a number; set it to a free port of {address}")
    own, local = (_number(environment, launcher, name) for name in (rank, local_rank))
    place = Place(launcher, ranks, own, local, str(address), int(str(port)))
    if place.rank >= ranks:
        raise LaunchError(f"{rank}={place.rank}, but with {size}={ranks} the last rank is {ranks - 1}")
    return place


def _meeting_place(environment: Mapping[str, str], launcher: str, on_one_host: bool) -> tuple[str | None, str | None]:
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    # What all ranks of one start know and those of no other: ports are then told apart without asking anyone.
    job = None
    if launcher == "srun":
        hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST")
        address = address or (first_host(hosts) if hosts else None)
        job = f"{environment.get('SLURM_JOB_ID')}.{environment['SLURM_STEP_ID']}"
    elif launcher != "torchrun":
        address = address or ("127.0.0.1" if on_one_host else None)
        job = environment.get("PMIX_NAMESPACE")
    if port is None and job is not None:
        port = str(_FIRST_PORT + zlib.crc32(job.encode()) % _PORTS)
    return address, port


def _remedy(launcher: str, ranks: int, missing: list[str]) -> str:
    if launcher == "torchrun":
        return f"start with torchrun --nproc-per-node {ranks}, or unset WORLD_SIZE to run on one rank"
    if set(missing) <= {"MASTER_ADDR", "MASTER_PORT"}:
        return "set MASTER_ADDR to the host of rank 0, and MASTER_PORT to a free port there, for all ranks"
    return f"start all ranks with {launcher}"


def _number(environment: Mapping[str, str], launcher: str, name: str, least: int = 0) -> int:
    text = environment.get(name, "")
    if not text.isdigit() or int(text) < least:
        what = "number of ranks" if least else "rank"
        raise LaunchError(f"{name}={text} is not a {what}; start with {launcher}")
    return int(text)
