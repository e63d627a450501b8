"""Which validation is the best, when a run ends early, and who is told of it."""

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_comm.testing import run_launched_ranks
from janus_train import UserError, load_config, train
from janus_train.config import LossConfig, WatchConfig
from janus_train.data.frame import Frame
from janus_train.evaluate import Evaluation
from janus_train.run import resume
from janus_train.run_log import RunLog
from janus_train.sinks import TensorBoardSink, WandbSink, check_sinks
from janus_train.state import Progress
from janus_train.testing import check_metrics_sink
from janus_train.watching import check_watched, has_ended_early, note_validation, notice_of, watched_value
from lennard_jones_runs import load, recipe, save, settings, write_clusters

VALUES = st.lists(st.one_of(st.floats(-2, 2), st.sampled_from([math.nan, math.inf, -math.inf])), max_size=12)


def judged(values, min_delta=0.0, progress=None) -> tuple[Progress, list[bool]]:
    """What is noted of validations with these values, one a step, and which were the best so far."""
    progress, best = progress or Progress(), []
    for value in values:
        progress.step += 1
        best.append(note_validation(progress, "loss", value, min_delta))
        if best[-1]:
            progress.best_value, progress.best_step = value, progress.step
    return progress, best


@given(VALUES)
def test_the_best_validation_is_the_first_of_the_lowest_that_are_finite(values):
    progress, best = judged(values)
    finite = [value for value in values if math.isfinite(value)]
    assert progress.best_value == min(finite, default=None)
    if finite:
        assert progress.best_step == 1 + values.index(min(finite))
    for place, value in enumerate(values):
        before = [earlier for earlier in values[:place] if math.isfinite(earlier)]
        assert best[place] == (math.isfinite(value) and all(value < earlier for earlier in before))


@given(VALUES, st.floats(0, 1))
def test_patience_counts_validations_since_the_last_one_that_was_lower_by_more_than_the_least(values, min_delta):
    progress, _ = judged(values, min_delta)
    level, since = math.inf, 0
    for value in values:
        lower = math.isfinite(value) and (math.isinf(level) or value < level - min_delta)
        level, since = (value, 0) if lower else (level, since + 1)
    assert progress.no_better == since
    assert progress.better_value == (None if math.isinf(level) else level)
    for patience in (1, 3):
        assert has_ended_early(progress, WatchConfig(patience=patience)) == (since >= patience)
    assert not has_ended_early(progress, WatchConfig())


@given(VALUES, st.integers(0, 12))
def test_what_was_noted_goes_through_a_file_and_on(values, cut):
    whole, _ = judged(values, 0.1)
    first, _ = judged(values[:cut], 0.1)
    again, _ = judged(values[cut:], 0.1, Progress(**json.loads(json.dumps(asdict(first)))))
    assert again == whole


def test_another_metric_begins_anew():
    progress, _ = judged([0.5, 0.7, 0.8])
    assert note_validation(progress, "forces_mae", 3.0, 0.0)
    assert (progress.better_value, progress.no_better, progress.best_value) == (3.0, 0, None)


def test_the_notice_names_the_step_since_when_nothing_is_better_and_when_that_ends_the_run():
    progress, _ = judged([0.5, 0.4, 0.45, 0.41])
    assert notice_of(progress, WatchConfig(plateau=3)) is None
    assert notice_of(progress, WatchConfig(plateau=2)) == (
        "validation loss has not improved since step 2, in 2 validations"
    )
    ended = notice_of(progress, WatchConfig(plateau=3, patience=2))
    assert ended == (
        "validation loss has not improved since step 2, in 2 validations: the run ends here (watch.patience=2)"
    )
    assert "was never finite, in a validation" in str(notice_of(judged([math.nan])[0], WatchConfig(plateau=1)))


def evaluation(loss: float, **errors: float | None) -> Evaluation:
    tasks = {task: {"forces_mae": error} for task, error in errors.items()}
    return Evaluation(tasks, {"metals": {"energy": (3 * loss, 3), "forces": (0.0, 1)}}, {}, {})


def test_the_watched_value_is_the_loss_or_an_error_of_one_task_or_the_mean_over_those_that_have_it():
    found = evaluation(0.25, metals=0.1, molecules=0.4, ions=None)
    weights = LossConfig(energy=2.0, forces=5.0, stress=0)
    assert watched_value("loss", found, weights) == 0.5
    assert watched_value("forces_mae", found, weights) == pytest.approx(0.25)
    assert watched_value("metals/forces_mae", found, weights) == 0.1
    assert math.isnan(watched_value("ions/forces_mae", found, weights))


@pytest.mark.parametrize("metric", ["loss", "forces_mae", "metals/forces_mae"])
def test_a_validation_whose_loss_or_error_is_not_finite_has_no_value(metric):
    for found in (evaluation(math.nan, metals=0.1), evaluation(math.inf, metals=0.1)):
        assert math.isnan(watched_value(metric, found, LossConfig(stress=0)))
    if metric != "loss":
        assert math.isnan(watched_value(metric, evaluation(0.1, metals=math.nan), LossConfig(stress=0)))


def test_watching_what_no_validation_can_have_is_an_error_that_says_what_can_be_watched():
    from janus_graph import Structure

    structure = Structure(np.array([18]), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, dtype=bool))
    frames = [Frame(structure, "argon", energy=0.0, forces=np.zeros((1, 3)), stress=np.zeros((3, 3)))]
    for metric in ("loss", "forces_mae", "argon/energy_mae"):
        check_watched(metric, frames, {"energy": 1.0, "forces": 1.0})
    with pytest.raises(UserError, match=r"loss\.forces is 0"):
        check_watched("forces_mae", frames, {"energy": 1.0})
    with pytest.raises(UserError, match=r"no validation frame of task neon has forces; tasks that have: argon"):
        check_watched("neon/forces_mae", frames, {"forces": 1.0})
    with pytest.raises(UserError, match=r"no validation frame has stress; tasks that have: none"):
        check_watched("stress_mae", frames, {"stress": 1.0})  # a lone atom has no volume
    with pytest.raises(UserError, match=r"'froces_mae' is not computed; choose loss, or energy_mae"):
        load_config(None, ["watch.metric=froces_mae"])


# Whole runs


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "argon.extxyz"
    write_clusters(path)
    return path


# So small a step that no validation is better by the least amount.
STUCK = ("optim.lr=1e-9", "run.val_every=1", "run.max_steps=8", "run.stop_at_step=null", "watch.min_delta=0.001",
         "watch.patience=3", "watch.plateau=2")  # fmt: skip


def logged(directory: Path, kind: str) -> list[dict]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def test_a_nan_loss_is_never_saved_as_best(data: Path, tmp_path: Path):
    validations = []

    def sometimes_nan(*arguments):
        made = recipe(*arguments)

        def spoil(model, inputs, found):
            import torch

            if torch.is_grad_enabled():
                return found
            validations.append(1)
            return replace(found, energy=found.energy * math.nan) if len(validations) < 3 else found

        made.model.register_forward_hook(spoil)
        return made

    short = [*settings(data, tmp_path / "run"), "run.val_every=1", "run.stop_at_step=4", "data.batch_edges=100000"]
    train(load_config(None, short), sometimes_nan)
    best = [line["best"] for line in logged(tmp_path / "run", "val")]
    losses = [line["loss"] for line in logged(tmp_path / "run", "val")]
    assert (losses[:2], best[:3]) == ([None, None], [False, False, True])
    assert math.isfinite(load(tmp_path / "run").epsilon.item())

    def always_nan(*arguments):
        validations.clear()
        return replace(sometimes_nan(*arguments), before_step=lambda model, step: validations.clear())

    directory = tmp_path / "nothing"
    with pytest.raises(UserError, match="no validation had a finite loss"):
        train(load_config(None, [*short, f"run.dir={directory}", "run.max_steps=2"]), always_nan)
    assert not (directory / "argon.txt").exists()


def test_the_best_model_is_chosen_by_the_metric_that_is_named(data: Path, tmp_path: Path):
    energies, forces = [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]
    steps = []

    def made(*arguments):
        plain = recipe(*arguments)

        def worse_forces(model, inputs, found):
            import torch

            if torch.is_grad_enabled():
                return found
            place = min(len(steps), 3) - 1
            return replace(found, energy=found.energy + energies[place], forces=found.forces + forces[place])

        plain.model.register_forward_hook(worse_forces)
        return replace(plain, before_step=lambda model, step: steps.append(step), save=remember)

    saved: list[int] = []

    def remember(model, directory, about):
        saved.append(about["step"])
        save(model, directory, about)

    expected = {"energy_mae": [1, 2, 3], "default/forces_mae": [1]}
    for metric, best in expected.items():
        steps.clear()
        saved.clear()
        directory = tmp_path / metric.replace("/", "-")
        short = [*settings(data, directory), "run.val_every=1", "run.stop_at_step=3", "optim.lr=1e-9"]
        train(load_config(None, [*short, f"watch.metric={metric}"]), made)
        assert saved == best


def test_all_ranks_of_a_run_end_early_together_and_a_stop_between_makes_no_difference(data: Path, tmp_path: Path):
    directory = tmp_path / "run"

    def in_parts(rank):
        train(load_config(None, [*settings(data, directory, 2), *STUCK, "run.stop_at_step=3"]), recipe)
        resume(directory, [], recipe)

    assert run_launched_ranks(2, in_parts) == ["done", "done"]
    values = logged(directory, "val")
    assert [line["step"] for line in values] == [1, 2, 3, 4]
    assert [line["watch"]["no_better"] for line in values] == [0, 1, 2, 3]
    assert values[2]["watch"]["notice"] == "validation loss has not improved since step 1, in 2 validations"
    assert "the run ends here" in values[3]["watch"]["notice"]
    assert sorted(path.name for path in (directory / "checkpoints").iterdir())[-1] == "step-000004"
    assert {"evaluation.json", "report.html"} <= {path.name for path in directory.iterdir()}


def test_the_bar_fits_into_a_terminal_of_eighty_columns_and_shows_all_that_there_is():
    import io

    from rich.console import Console

    from janus_train.display import Bar

    bar = Bar(4500, 0)
    for done in ("before", "after"):
        console = Console(width=80, file=io.StringIO())
        console.print(bar._progress.get_renderable())
        (line,) = console.file.getvalue().splitlines()
        assert "…" not in line
        assert len(line) <= 80
        if done == "before":
            bar.step(1234, 0.01234, 129.5)
            bar.validated(0.012345)
    assert all(part in line for part in ("1234/4500", "loss 0.0123", "129.5 structures/s", "left", "val 0.0123"))


# Sinks


def test_tensorboard_is_told_every_number_once_however_often_the_run_is_stopped(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def points():
        # A file alone: a directory would hide what is told twice.
        (path,) = tmp_path.glob("events.out.tfevents.*")
        events = EventAccumulator(str(path), {"scalars": 0})
        events.Reload()
        return [(name, e.step, e.value) for name in events.Tags()["scalars"] for e in events.Scalars(name)]

    check_metrics_sink(lambda lines, told: [TensorBoardSink(tmp_path, lines)], points, within=1e-7)


class PretendedWandb:
    """What `wandb` does with runs: they are kept by id, and go on where they were."""

    def __init__(self):
        self.runs: dict[str, list] = {}

    def init(self, project, dir, id, resume, name, config):
        key = id or f"{project}-{len(self.runs)}"
        points = self.runs.setdefault(key, [])

        def log(numbers, step):
            points.extend((name, step, value) for name, value in numbers.items())

        return SimpleNamespace(id=key, log=log, finish=lambda: None)


def test_wandb_is_told_every_number_once_however_often_the_run_is_stopped(tmp_path: Path, monkeypatch):
    pretended = PretendedWandb()
    monkeypatch.setitem(sys.modules, "wandb", pretended)
    check_metrics_sink(
        lambda lines, told: [WandbSink("argon", tmp_path, {}, lines, told)], lambda: pretended.runs["argon-0"]
    )
    assert list(pretended.runs) == ["argon-0"]
    sink = WandbSink("neon", tmp_path, {}, [{"kind": "train", "step": 3, "loss": 0.5}], {"train": 3})
    sink.close()
    assert pretended.runs["neon-1"] == [("train/loss", 3, 0.5)]  # another project has heard nothing yet


def test_a_sink_that_repeats_itself_breaks_the_law():
    told = []

    class Forgetful:
        def write(self, line):
            told.append(("train/loss", line["step"], line["loss"]))

        def close(self):
            pass

    with pytest.raises(AssertionError, match="told more than once"):
        check_metrics_sink(lambda lines, before: [Forgetful()], lambda: told)


def test_a_sink_that_fails_is_left_out_and_said_and_the_log_goes_on(tmp_path: Path):
    class Failing:
        def write(self, line):
            raise ConnectionError("no network")

        def close(self):
            raise AssertionError

    said = []
    with RunLog(tmp_path / "metrics.jsonl", 0, lambda lines, told: [Failing()], said.append) as log:
        for step in (1, 2):
            log.write({"kind": "train", "step": step})
    assert said == ["warning: Failing gets no more lines (ConnectionError: no network)"]
    assert [line["step"] for line in logged(tmp_path, "train")] == [1, 2]


@pytest.mark.parametrize(
    ("setting", "package"), [("watch.tensorboard=true", "tensorboard"), ("watch.wandb=p", "wandb")]
)
def test_a_missing_package_is_an_error_before_anything_else_that_says_how_to_install_it(
    setting: str, package: str, tmp_path: Path, monkeypatch
):
    from janus_train import sinks

    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    config = load_config(None, [setting, "data.train=/there/is/none", f"run.dir={tmp_path / 'run'}"])
    with pytest.raises(UserError, match=rf"pip install 'janus-train\[{package}\]'"):
        train(config, recipe)
    assert not (tmp_path / "run").exists()
    check_sinks(load_config(None, []).watch)
