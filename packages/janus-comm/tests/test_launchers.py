"""What launchers say is read as they say it, and what they leave out is asked for."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from janus_comm import LaunchError, Place, place_of
from janus_comm.launchers import first_host
from janus_comm.meeting import meet

TORCHRUN = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "1234"}
SRUN = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[003-004]", "SLURM_NODELIST": "gpu[001-004]", "SLURM_NTASKS": "32",
}  # fmt: skip
MPIRUN = {
    "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "prterun-n1-55@1", "MASTER_ADDR": "n1",
}  # fmt: skip
MPIEXEC = {
    "PMI_SIZE": "8", "PMI_RANK": "5", "MPI_LOCALRANKID": "5", "MPI_LOCALNRANKS": "8", "MASTER_PORT": "4321"
}  # fmt: skip


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


def test_torchrun_says_everything():
    assert place_of(TORCHRUN) == Place("torchrun", 4, 3, 1, "n1", 1234)


def test_srun_has_its_ranks_meet_on_the_first_host_of_the_step():
    place = place_of(SRUN)
    assert place == Place("srun", 16, 9, 1, "gpu003", place.port)
    assert place_of({**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).port == place.port
    assert place_of({**SRUN, "SLURM_STEP_ID": "1"}).port != place.port
    assert 20000 <= place.port < 32000
    assert place_of(SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "99"}).address == "10.0.0.1"
    assert place_of(without(SRUN, "SLURM_STEP_NUM_TASKS")).size == 32


def test_a_script_that_sbatch_runs_is_one_process():
    assert place_of(without(SRUN, "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS")) == Place("none")
    assert place_of({}) == Place("none")


def test_mpi_ranks_of_several_hosts_are_told_where_to_meet_and_those_of_one_know():
    place = place_of(MPIRUN)
    assert place == Place("mpirun", 8, 5, 1, "n1", place.port)
    with pytest.raises(LaunchError, match="MASTER_ADDR is not; set MASTER_ADDR to the host of rank 0"):
        place_of(without(MPIRUN, "MASTER_ADDR"))
    assert place_of(without(MPIRUN, "MASTER_ADDR") | {"OMPI_COMM_WORLD_LOCAL_SIZE": "8"}).address == "127.0.0.1"
    assert place_of(MPIEXEC) == Place("mpiexec", 8, 5, 5, "127.0.0.1", 4321)
    with pytest.raises(LaunchError, match="PMI_SIZE=8 is set but MASTER_PORT is not"):
        place_of(without(MPIEXEC, "MASTER_PORT"))


@pytest.mark.parametrize(("inner", "outer"), [(TORCHRUN, SRUN), (TORCHRUN, MPIRUN), (MPIRUN, SRUN), (MPIEXEC, SRUN)])
def test_the_inner_one_of_two_launchers_counts(inner: dict[str, str], outer: dict[str, str]):
    assert place_of(outer | inner).size == place_of(inner).size
    assert place_of(outer | inner).launcher == place_of(inner).launcher


@pytest.mark.parametrize(
    ("environment", "missing", "message"),
    [
        (TORCHRUN, "RANK", "WORLD_SIZE=4 is set but RANK is not; start with torchrun --nproc-per-node 4"),
        (SRUN, "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS=16 is set but SLURM_LOCALID is not; start all ranks with srun"),
        (MPIRUN, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_RANK is not; start all ranks with mpirun"),
        (MPIEXEC, "PMI_RANK", "PMI_SIZE=8 is set but PMI_RANK is not; start all ranks with mpiexec"),
    ],
)
def test_what_is_missing_is_named(environment: dict[str, str], missing: str, message: str):
    with pytest.raises(LaunchError, match=message):
        place_of(without(environment, missing))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two is not a number of ranks"),
        ({"RANK": "-1"}, "RANK=-1 is not a rank"),
        ({"RANK": "4"}, "RANK=4, but with WORLD_SIZE=4 the last rank is 3"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http is not a number"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, str], message: str):
    with pytest.raises(LaunchError, match=message):
        place_of(TORCHRUN | wrong)


@given(st.from_regex(r"[a-z][a-z0-9-]{0,5}", fullmatch=True), st.lists(st.integers(0, 99), min_size=1, max_size=4))
def test_the_first_host_is_the_first_one_that_a_list_means(prefix: str, numbers: list[int]):
    hosts = [f"{prefix}{number:03d}" for number in numbers]
    assert first_host(",".join(hosts)) == hosts[0]
    assert first_host(f"{prefix}[{','.join(f'{number:03d}' for number in numbers)}]") == hosts[0]
    assert first_host(f"{prefix}[{numbers[0]:03d}-{numbers[0] + 5:03d}],login1") == hosts[0]
    assert first_host(f"{prefix}[{numbers[0]:03d}-{numbers[0] + 5:03d},7]-ib[0-1]") == f"{hosts[0]}-ib0"


@pytest.mark.parametrize("size", [1, 2, 5])
def test_ranks_of_one_start_meet_in_a_store_that_remembers_others(size: int):
    store = dist.HashStore()
    for dead in ((), (0,), range(1, size), range(size)):
        # Some ranks of a start that came to nothing have left what they leave.
        for rank in dead:
            store.set(f"janus_comm/token/{rank}", "of a dead rank")
        with ThreadPoolExecutor(size) as pool:
            own = list(pool.map(lambda rank: meet(store, rank, size, 60.0), range(size)))
        assert not own[0].check(["address"])  # that of an earlier start is not seen
        own[0].set("address", str(dead))
        assert {each.get("address") for each in own} == {str(dead).encode()}


def test_ranks_that_do_not_come_are_named():
    with pytest.raises(RuntimeError, match="Timed out after 0 s without rank 1, 2"):
        meet(dist.HashStore(), 0, 3, 0.0)
