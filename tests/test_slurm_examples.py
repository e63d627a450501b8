"""The scripts in examples/slurm: with a scheduler that only writes down what it is told."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parent.parent / "examples" / "slurm").glob("*.sh"))
JOB = {"SLURM_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3", "SLURM_CPUS_PER_TASK": "8"}


@pytest.fixture
def scheduler(tmp_path: Path):
    """Runs a script whose srun ends with a code; gives the script's code, and what srun and scontrol were given."""

    def run(script: Path, code: int) -> tuple[int, list[list[str]]]:
        told = tmp_path / "told"
        for name, ends_with in (("srun", code), ("scontrol", 0)):
            (tmp_path / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {told}\nexit {ends_with}\n')
            (tmp_path / name).chmod(0o755)
        told.write_text("")
        environment = os.environ | JOB | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.returncode, [shlex.split(line) for line in told.read_text().splitlines()]

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
@pytest.mark.parametrize("code", [0, 1, 75])
def test_what_a_run_ends_with_is_passed_on_and_75_queues_an_array_again(script: Path, code: int, scheduler):
    ended, told = scheduler(script, code)
    assert ended == code
    assert told[0][:3] == ["srun", "janus-train", "train"]
    again = [["scontrol", "requeue", "77"]] if code == 75 and "requeue" in script.name else []
    assert told[1:] == again


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_mesh_is_as_large_as_what_is_asked_for_and_every_setting_is_known(script: Path, scheduler):
    from janus_train import load_config

    _, (words, *_) = scheduler(script, 0)
    mesh = load_config(None, words[3:]).mesh
    asked = {name: int(value) for name, value in re.findall(r"#SBATCH --([a-z-]+)=(\d+)$", script.read_text(), re.M)}
    assert mesh.replica * mesh.unit == asked["nodes"] * asked["ntasks-per-node"]
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
