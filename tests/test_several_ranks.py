"""A run gives the same numbers however many ranks it has."""

import shutil
from pathlib import Path

import pytest

from conftest import TINY, metrics, torchrun
from janus_comm.testing import run_launched_ranks
from janus_train import load_config, resume, train
from janus_train.recipes.matris import matris_recipe


def trained(ranks: int, *settings: str) -> list[str | None]:
    """What becomes of a run on each rank."""
    return run_launched_ranks(ranks, lambda rank: train(load_config(None, settings), matris_recipe))


@pytest.fixture(scope="module")
def settings(data_file: Path) -> list[str]:
    return [f"data.train={data_file}", *TINY, "run.dtype=float64", "run.max_steps=5", "run.val_every=5",
            "model.router.noise=0.02", "model.router.freeze_at=3"]  # fmt: skip


@pytest.fixture(scope="module")
def one_process(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "one"
    return train(load_config(None, [*settings, f"run.dir={directory}"]), matris_recipe)


@pytest.mark.parametrize(
    ("ranks", "mesh"),
    [
        (2, ("mesh.replica=2", "data.pass_edges=200")),
        (3, ("mesh.unit=3", "mesh.weights=regather", "data.pass_edges=100")),
        (2, ("mesh.unit=2", "mesh.route=tangent", "model.checkpoint=true")),
    ],
)
def test_losses_and_gradient_norms_do_not_depend_on_the_mesh(
    ranks: int, mesh: tuple[str, ...], settings: list[str], one_process: Path, tmp_path: Path
):
    directory = tmp_path / "run"
    assert trained(ranks, *settings, *mesh, f"run.dir={directory}") == ["done"] * ranks
    expected, found = metrics(one_process, "train"), metrics(directory, "train")
    assert len(expected) == len(found) == 5
    for one, several in zip(expected, found, strict=True):
        assert several["loss"] == pytest.approx(one["loss"], rel=1e-10)
        assert several["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-10)
        assert several["bytes_sent"]["sum"] > 0
    # Some steps have only structures that stay whole.
    assert ("halo" in found[-1]["bytes_sent"]) == ("mesh.replica=2" not in mesh)
    (one_val,), (several_val,) = metrics(one_process, "val"), metrics(directory, "val")
    assert several_val["loss"] == pytest.approx(one_val["loss"], rel=1e-10)


def test_what_one_mesh_began_others_end_with_the_numbers_of_one_process(
    settings: list[str], one_process: Path, tmp_path: Path, command
):
    directory = tmp_path / "run"
    mesh = "mesh.replica=2", "mesh.unit=2", "run.stop_at_step=3"
    assert trained(4, *settings, *mesh, f"run.dir={directory}") == ["done"] * 4
    copied = shutil.copytree(directory, tmp_path / "other")
    assert command("resume", str(directory), "mesh.replica=1", "mesh.unit=1")[0] == 0
    ended = run_launched_ranks(3, lambda rank: resume(copied, ["mesh.replica=1", "mesh.unit=3"], matris_recipe))
    assert ended == ["done"] * 3
    for resumed in (directory, copied):
        for one, several in zip(metrics(one_process, "train"), metrics(resumed, "train"), strict=True):
            assert several["loss"] == pytest.approx(one["loss"], rel=1e-10)
            assert several["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-10)
        assert metrics(resumed, "val")[0]["loss"] == pytest.approx(metrics(one_process, "val")[0]["loss"], rel=1e-10)


def test_a_model_that_only_comes_whole_is_not_cut(data_file: Path, tmp_path: Path):
    said = trained(2, f"data.train={data_file}", "model.preset=matris-6m", "mesh.unit=2", f"run.dir={tmp_path / 'run'}")
    assert all("UserError" in each and "set mesh.replica=2 mesh.unit=1" in each for each in said)


def test_torchrun_starts_a_run_in_which_one_rank_talks(settings: list[str], one_process: Path, tmp_path: Path):
    directory = tmp_path / "run"
    finished = torchrun(2, "train", *settings, "mesh.unit=2", f"run.dir={directory}")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("validation errors") == 1
    assert metrics(directory, "val")[0]["loss"] == pytest.approx(metrics(one_process, "val")[0]["loss"], rel=1e-10)


def test_a_mesh_that_does_not_fit_stops_every_rank_with_one_message(settings: list[str], tmp_path: Path):
    finished = torchrun(2, "train", *settings, "mesh.replica=3", f"run.dir={tmp_path / 'run'}")
    assert finished.returncode != 0
    assert finished.stderr.count("mesh.replica=3 × mesh.unit=1 needs 3 ranks, but 2 were launched") == 1
    assert not (tmp_path / "run").exists()


def test_bad_data_stop_every_rank_with_one_message(tmp_path: Path):
    finished = torchrun(2, "train", "mesh.replica=2", f"data.train={tmp_path / 'nowhere.xyz'}")
    assert finished.returncode != 0
    assert finished.stderr.count("error: no file") == 1
    assert "exitcode  : 2" in finished.stderr
