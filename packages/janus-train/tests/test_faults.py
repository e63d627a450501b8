"""What happens to a run when it is asked to stop, killed, or without memory or space."""

import errno
import json
import logging
import os
import random
import resource
import signal
import sys
import threading
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from janus_comm import SingleRank
from janus_comm.testing import run_launched_ranks
from janus_train import UserError, load_config, train
from janus_train.data.batch import FrameSource
from janus_train.data.batching import epoch_batches
from janus_train.data.load import load_data
from janus_train.memory_errors import naming_the_batch
from janus_train.metrics import MetricsLog
from janus_train.rank_log import rank_log
from janus_train.run import resume
from janus_train.run_directory import Job, choose_directory, job_of, write_about
from janus_train.stopping import StopSignals
from lennard_jones_runs import recipe, save, settings, write_clusters

KILLS = 50 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 2


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "argon.extxyz"
    write_clusters(path)
    return path


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory) -> dict[int, list]:
    """What is logged, by number of ranks."""
    logged = {}
    for ranks in (1, 2):
        directory = tmp_path_factory.mktemp("undisturbed") / str(ranks)
        config = load_config(None, settings(data, directory, ranks))
        run = partial(train, config, recipe)
        if ranks == 1:
            run()
        else:
            assert run_launched_ranks(ranks, lambda rank, run=run: run()) == ["done"] * ranks
        logged[ranks] = lines(directory)
    return logged


def lines(directory: Path) -> list[tuple]:
    """What must not depend on what happened meanwhile, in order."""
    read = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [(line["kind"], line["step"], line["loss"], line.get("grad_norm")) for line in read]


@pytest.mark.parametrize(("ranks", "number"), [(1, signal.SIGTERM), (2, signal.SIGUSR1), (1, signal.SIGINT)])
def test_a_signal_to_one_rank_ends_all_with_a_checkpoint_of_the_step_and_nothing_is_different_after(
    ranks: int, number: signal.Signals, data: Path, undisturbed: dict[int, list], tmp_path: Path
):
    def ask(model, step):
        if step == 2 and os.environ.get("RANK", "0") == str(ranks - 1):
            os.kill(os.getpid(), number)

    directory = tmp_path / "run"
    config = load_config(None, settings(data, directory, ranks))
    asked = run_launched_ranks(ranks, lambda rank: train(config, partial(recipe, before_step=ask)))
    told = f"Stopped: asked by a signal, stopped at step 3; go on with: janus-train resume {directory}"
    assert asked == [told] * ranks
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == ["step-000002", "step-000003"]
    go_on = run_launched_ranks(ranks, lambda rank: resume(directory, ["run.stop_at_step=6"], recipe))
    assert go_on == ["done"] * ranks
    assert lines(directory) == undisturbed[ranks]


def test_ctrl_c_once_asks_a_run_to_stop_and_twice_ends_it_at_once():
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_signals_are_noted_inside_and_as_before_outside():
    def before(number, frame):
        raise AssertionError

    kept = signal.signal(signal.SIGUSR1, before)
    try:
        with StopSignals() as stop:
            assert stop.name is None
            signal.raise_signal(signal.SIGUSR1)
            assert stop.name == "SIGUSR1"
        assert signal.getsignal(signal.SIGUSR1) is before
        thread = threading.Thread(target=StopSignals().__enter__)
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGUSR1) is before
    finally:
        signal.signal(signal.SIGUSR1, kept)


def killed_at(call: int, function) -> int:
    """Runs the function, whose process is killed at this call of a Python function on any of its threads. If it comes
    to an end before: how many calls there were.
    """
    made = 0

    def count(frame, event, argument):
        nonlocal made
        made += 1
        if made == call:
            os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return made


def test_a_run_whose_ranks_are_killed_at_random_points_has_the_trajectory_of_one_that_is_left_alone(
    data: Path, undisturbed: dict[int, list], tmp_path: Path
):
    choose = random.Random(int(os.environ.get("KILLS_SEED", "0")))
    calls = killed_at(0, lambda: train(load_config(None, settings(data, tmp_path / "counted")), recipe))
    killed = runs = 0
    while killed < KILLS:
        directory = tmp_path / f"run-{runs}"
        config = load_config(None, [*settings(data, directory, 2), f"run.checked={runs % 2 == 1}"])
        outcome, starts, runs = [], 0, runs + 1
        while outcome != ["done", "done"]:
            victim, call = choose.randrange(2), choose.randrange(1, calls) if starts < 2 else 0

            def run(rank, call=call, victim=victim, config=config):
                killed_at(call if rank == victim else 0, lambda: train(config, recipe))

            job = {"TORCHELASTIC_RUN_ID": directory.name, "TORCHELASTIC_RESTART_COUNT": str(starts)}
            outcome = run_launched_ranks(2, run, job)
            starts += 1
            if None in outcome:
                killed += 1
                print(f"start {starts} of {directory.name}: rank {victim} killed at call {call} of {calls}: {outcome}")
                assert str(outcome[1 - victim]).startswith("RankFailed: ")
            else:  # a later start has less to do, and is done before its call comes
                assert outcome == ["done", "done"]
        assert lines(directory) == undisturbed[2]


def no_space():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_memory_on_the_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize(
    ("run_out", "known"),
    [
        (lambda: torch.empty(2**46), True),
        (lambda: np.empty(2**50), True),
        (no_memory_on_the_gpu, True),
        (lambda: torch.ones(2) @ torch.ones(3), False),
    ],
)
def test_a_batch_that_is_too_large_is_named_with_its_cost_and_what_to_do(run_out, known: bool, data: Path):
    config = load_config(None, [f"data.train={data}", "data.batch_edges=60", "loss.stress=0"])
    source = FrameSource(load_data(config).train, 9.0, 4.5)

    def step():
        with naming_the_batch(source, [0, 3, 1, 5], config.data, "step 7"):
            run_out()

    if not known:
        with pytest.raises(RuntimeError, match="size"):
            step()
        return
    with pytest.raises(UserError) as raised:
        step()
    message = str(raised.value)
    assert message.startswith("step 7 is too large for the memory: 4 structures, ")
    assert f"{sum(source.atoms[[0, 3, 1, 5]])} atoms, {sum(source.edges[[0, 3, 1, 5]])} edges" in message
    largest = source.frames[max([0, 3, 1, 5], key=lambda place: source.edges[place])].origin
    assert f"largest first: {largest} (" in message
    assert " and 1 more. Set data.pass_edges=30 " in message
    assert "a smaller data.batch_edges (now 60)" in message


def test_the_largest_step_is_tried_before_the_first_one_and_changes_nothing(data: Path, tmp_path: Path, monkeypatch):
    edges: list[int] = []

    def watching(*arguments):
        made = recipe(*arguments)
        made.model.register_forward_pre_hook(lambda model, inputs: edges.append(inputs[0].edges))
        return made

    train(load_config(None, settings(data, tmp_path / "tried")), watching)
    config = load_config(None, settings(data, tmp_path / "tried"))
    found = load_data(config)
    source = FrameSource(found.train, 9.0, 4.5)
    batches = epoch_batches(source.edges, config.data.batch_edges, config.run.seed, 0)
    assert edges[0] == max(int(source.edges[batch].sum()) for batch in batches)
    monkeypatch.setattr("janus_train.loop.try_largest_step", lambda *arguments: "not tried")
    train(load_config(None, settings(data, tmp_path / "untried")), recipe)
    assert lines(tmp_path / "tried") == lines(tmp_path / "untried")


def test_a_full_disk_costs_what_could_not_be_written_and_not_the_run(data: Path, tmp_path: Path, capsys):
    steps, saved = [], []

    def not_finite_in_the_second_step(model, inputs, found):
        return replace(found, energy=found.energy * float("nan")) if len(steps) == 2 else None

    def no_space_at_first(model, directory, about):
        saved.append(about["step"])
        if len(saved) == 1:
            no_space()
        save(model, directory, about)

    def refusing(*arguments):
        made = recipe(*arguments, before_step=lambda model, step: steps.append(step))
        made.model.register_forward_hook(not_finite_in_the_second_step)
        return replace(made, save=no_space_at_first)

    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "bad_batches.extxyz").symlink_to("/dev/full")
    train(load_config(None, [*settings(data, directory), "optim.ema_decay=0"]), refusing)
    said = capsys.readouterr().out
    assert "step 2: loss or gradient is not finite; step skipped, " in said
    assert "bad_batches.extxyz cannot be written (No space left on device), structures: frame " in said
    assert "the model of step 3 cannot be written" in said
    assert saved == [3, 6]
    assert (directory / "argon.txt").exists()
    progress = json.loads((directory / "checkpoints" / "step-000006" / "progress.json").read_text())
    assert (progress["best_step"], progress["skipped"]) == (6, 1)


def test_a_log_that_is_full_keeps_its_lines_until_there_is_room(tmp_path: Path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1})
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, allowed[1]))
    try:
        for step in (2, 3):
            with pytest.raises(OSError, match="File too large"):
                log.write({"step": step})
            assert log.read() == [{"step": 1}]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    log.write({"step": 4})
    assert log.read() == [{"step": step} for step in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Job(None, False)),
        ({"TORCHELASTIC_RUN_ID": "a1", "TORCHELASTIC_RESTART_COUNT": "0"}, Job("torchrun a1", False)),
        ({"TORCHELASTIC_RUN_ID": "a1", "TORCHELASTIC_RESTART_COUNT": "2"}, Job("torchrun a1", True)),
        ({"SLURM_JOB_ID": "7"}, Job("slurm 7", False)),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1", "TORCHELASTIC_RUN_ID": "a1"}, Job("slurm 7", True)),
        ({"SLURM_JOB_ID": "7", "TORCHELASTIC_RUN_ID": "a1", "TORCHELASTIC_RESTART_COUNT": "1"}, Job("slurm 7", True)),
    ],
)
def test_a_job_has_one_name_however_often_it_is_started(environment: dict[str, str], expected: Job):
    assert job_of(environment) == expected


def test_torchrun_without_a_name_is_known_by_the_process_that_it_is():
    job = job_of({"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"})
    assert str(os.getppid()) in str(job.name)


@pytest.mark.parametrize("named", [True, False])
def test_only_the_run_that_the_same_job_began_with_the_same_settings_is_taken_up(
    named: bool, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = load_config(None, ["run.dir=mine"] if named else [])
    begun, again, other = Job("slurm 7", False), Job("slurm 7", True), Job("slurm 8", True)
    directory, taken_up = choose_directory(SingleRank(), config, begun)
    assert (directory, taken_up) == (Path("mine") if named else Path("runs/nano-001"), False)
    # Killed before anything was written: begins anew.
    empty, taken_up = choose_directory(SingleRank(), config, again)
    assert not taken_up
    if empty != directory:
        empty.rmdir()
    write_about(directory, config, begun, None)
    assert choose_directory(SingleRank(), config, again) == (directory, True)
    changed = load_config(None, [*(["run.dir=mine"] if named else []), "optim.lr=0.5"])
    for job, given in ((begun, config), (other, config), (again, changed), (Job(None, True), config)):
        if named:
            with pytest.raises(UserError, match="mine already holds a run"):
                choose_directory(SingleRank(), given, job)
        else:
            assert choose_directory(SingleRank(), given, job) == (Path("runs/nano-002"), False)
            Path("runs/nano-002").rmdir()


@pytest.mark.parametrize("rank", [0, 3])
def test_each_rank_has_a_file_for_warnings_and_errors_and_the_first_one_shows_them(rank: int, tmp_path: Path):
    with rank_log(tmp_path, rank):
        pass
    path = tmp_path / "logs" / f"rank-{rank:04d}.log"
    assert not path.exists()

    def fail():
        warnings.warn("the cutoff is short", stacklevel=1)
        logging.getLogger("somebody").info("nothing of interest")
        raise ZeroDivisionError("no atoms in frame 7")

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with pytest.raises(ZeroDivisionError), rank_log(tmp_path, rank):
            fail()
    text = path.read_text()
    assert "UserWarning: the cutoff is short" in text
    assert f"rank {rank} ends by an error" in text
    assert "ZeroDivisionError: no atoms in frame 7" in text
    assert "nothing of interest" not in text
    assert len(shown) == (1 if rank == 0 else 0)
