"""Ranks join as their launcher's environment says, or stop with a message."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from janus_comm import LaunchError, SingleRank, launch
from janus_comm.testing import run_rank_processes

RANKS = """
import sys
from pathlib import Path

import torch
import torch.distributed

from janus_comm import RankFailed, all_reduce, launch

with launch(device="cpu") as launched:
    world = launched.world
    total = all_reduce(torch.tensor([world.rank + 1.0]), world)
    Path(sys.argv[1], str(world.rank)).write_text(f"{world.size} {total.item()} {launched.device}")
assert not torch.distributed.is_initialized()
try:
    world.barrier()
except RankFailed as error:
    assert "a group that has ended" in str(error)
else:
    raise AssertionError("a barrier of a group that has ended")
"""


@pytest.fixture
def environment(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_ranks_that_torchrun_starts_find_each_other(tmp_path, environment):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*command, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert [Path(tmp_path, str(rank)).read_text() for rank in range(2)] == ["2 3.0 cpu"] * 2


@pytest.mark.parametrize("size", [None, "1"])
def test_one_process_needs_no_launcher(environment, size):
    if size is not None:
        environment.setenv("WORLD_SIZE", size)
    with launch() as launched:
        assert isinstance(launched.world, SingleRank)
        assert launched.device == torch.device("cpu")
    assert not torch.distributed.is_initialized()


def test_an_incomplete_environment_is_refused(environment):
    environment.setenv("WORLD_SIZE", "2")
    environment.setenv("RANK", "0")
    with (
        pytest.raises(LaunchError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not; start with torchrun"),
        launch(),
    ):
        pass


@pytest.mark.parametrize("size", ["0", "two"])
def test_a_world_size_that_is_no_number_of_ranks_is_refused(environment, size):
    environment.setenv("WORLD_SIZE", size)
    with pytest.raises(LaunchError, match=f"WORLD_SIZE={size} is not a number of ranks"), launch():
        pass


def test_a_device_that_is_not_there_is_refused(environment):
    absent = torch.device("cuda", torch.cuda.device_count())
    with pytest.raises(LaunchError, match="use device=cpu or start fewer ranks a node"), launch(absent):
        pass
    with pytest.raises(LaunchError, match="device=mps is not supported; use cpu or cuda"), launch("mps"):
        pass


def test_a_second_process_group_is_refused():
    def again(communicator):
        os.environ.update(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
        with pytest.raises(LaunchError, match="a process group exists already"), launch():
            pass

    run_rank_processes(2, again)
