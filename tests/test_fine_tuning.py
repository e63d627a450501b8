"""Runs that start from trained weights: nothing is changed that the user did not ask for, and what is there is told."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from safetensors.torch import load_file

from conftest import TINY, metrics
from janus_comm.testing import run_launched_ranks
from janus_train import UserError, load_config, train
from janus_train.checkpoint_files import Stored
from janus_train.config import StartConfig
from janus_train.pieces import Piece
from janus_train.recipes.matris import matris_recipe
from janus_train.recipes.matris_inference import evaluate_files
from janus_train.recipes.matris_start import matris_start, new_elements
from janus_train.state import Portion
from matris_model import MatRISMoE, golden_structures, load_model
from matris_model.golden import golden_values

SHIFT = {8: -40.0, 14: 7.0, 16: 3.0}
# Of TINY what is not the shape of the model. The end of a run with its report costs most: none gets there.
SHORT = [
    *(setting for setting in TINY if not setting.startswith("model.")),
    "run.dtype=float64", "optim.lr=1e-4", "run.max_steps=9", "run.stop_at_step=1",
]  # fmt: skip


def run(*settings: object) -> Path:
    return train(load_config(None, [str(setting) for setting in settings]), matris_recipe, matris_start)


@pytest.fixture(scope="module")
def old(data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained for a few steps on one level of theory."""
    directory = tmp_path_factory.mktemp("old") / "run"
    short = ["run.dtype=float64", "run.max_steps=9", "run.val_every=4", "run.stop_at_step=4"]
    return run(f"data.train={data_file}", *TINY, *short, f"run.dir={directory}")


@pytest.fixture(scope="module")
def shifted(data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same structures at another level of theory: energies of atoms are others, and forces a little."""
    frames = read(data_file, ":")
    for atoms in frames:
        labels = dict(atoms.calc.results)
        labels["energy"] += sum(SHIFT[z] for z in atoms.numbers.tolist())
        labels["forces"] = 1.1 * labels["forces"]
        atoms.calc = SinglePointCalculator(atoms, **labels)
        atoms.info["task"] = "other"
    path = tmp_path_factory.mktemp("shifted") / "other.extxyz"
    write(path, frames, format="extxyz")
    return path


def errors_at_the_start(directory: Path) -> dict[str, dict]:
    first = metrics(directory, "val")[0]
    assert first["step"] == 0
    return first["tasks"]


def test_fine_tuning_never_changes_what_the_user_set_and_tells_the_errors_it_starts_from(
    old: Path, data_file: Path, tmp_path: Path, command
):
    settings = [f"start.model={old}", f"data.train={data_file}", *SHORT, "optim.lr=0.003", "optim.ema_decay=0.7",
                "loss.energy=0.5", "optim.clip=3", "run.dir=run"]  # fmt: skip
    code, out, err = command("train", *settings)
    assert code == 0, err
    assert "errors of the starting weights on the validation frames" in out
    saved = load_config(tmp_path / "run" / "config.yaml")
    assert (saved.optim.lr, saved.optim.ema_decay, saved.loss.energy, saved.optim.clip) == (0.003, 0.7, 0.5, 3.0)
    found, expected = errors_at_the_start(tmp_path / "run"), evaluate_files(old, None, None)["tasks"]
    for name in ("energy_mae", "forces_mae", "stress_mae"):
        assert found["lj"][name] == pytest.approx(expected["lj"][name], rel=1e-9)
    before, after = load_model(old), load_model(tmp_path / "run")
    assert after.config == before.config
    assert torch.equal(after.references, before.references)
    assert torch.equal(after.scales, before.scales)


def test_an_old_task_says_the_same_to_the_bit_where_all_it_uses_is_frozen_and_a_new_one_learns(
    old: Path, shifted: Path, tmp_path: Path, command
):
    before = load_model(old)
    table = "atom_embedding.structure.task"
    frozen = json.dumps([name for name, _ in before.named_parameters() if name != table])
    settings = [f"start.model={old}", f"data.train={shifted}", *SHORT, "run.stop_at_step=3", "run.dir=run"]
    code, out, err = command("train", *settings, f"start.freeze={frozen}", "optim.weight_decay=0.5", "optim.lr=0.01")
    assert code == 0, err
    assert "new task other: begins as lj" in out
    stored = Stored(tmp_path / "run" / "checkpoints" / "step-000003")
    assert {name.split(".", 1)[1] for name in stored.tensors if name.startswith("optimizer.")} == {
        f"{table}.{moment}" for moment in ("step", "exp_avg", "exp_avg_sq")
    }
    after = load_model(tmp_path / "run")
    for name, tensor in after.state_dict().items():
        rows = tensor.reshape(1) if tensor.dim() == 0 else tensor
        stored.fill({f"model.{name}": Piece(rows, Portion(tuple(rows.shape), (0,) * rows.dim()))})
    learnt, first = after.get_parameter(table), before.get_parameter(table)[0]
    assert (learnt[1] - first).abs().max() > 1e-3
    structures = golden_structures(before)
    for one, other in zip(golden_values(before, structures), golden_values(after, structures), strict=True):
        assert one == other


def test_references_of_a_new_task_are_those_that_the_starting_weights_leave_least_of(
    old: Path, data_file: Path, shifted: Path, tmp_path: Path
):
    settings = [f"start.model={old}", f"data.train={shifted}", *SHORT]
    directory = run(*settings, f"run.dir={tmp_path / 'run'}")
    data = json.loads((directory / "data.json").read_text())
    source = data["reference_fits"]["other"]["source"]
    assert source.endswith("moved by least squares on what the starting weights leave")
    # The shift of the level of theory, and what a young model is wrong by on average.
    new, known = data["references"]["other"], data["references"]["lj"]
    for z in (8, 14):
        assert new[str(z)] - known[str(z)] == pytest.approx(SHIFT[z], abs=1.0)
    # References that follow the new level would leave what the old model leaves of its own; the best leave less.
    write(tmp_path / "train.extxyz", [atoms for atoms in read(data_file, ":") if atoms.info["split"] == "train"])
    left = evaluate_files(old, [tmp_path / "train.extxyz"], None)["tasks"]["lj"]["energy_rmse"]
    assert 0 < data["reference_residuals"]["other"] <= left * (1 + 1e-9)
    model = load_model(directory)
    assert model.references[1, 8].item() == new["8"]
    assert model.scales[1].item() == model.scales[0].item() == data["scales"]["other"]


def test_a_known_task_at_another_level_of_theory_shows_in_the_first_errors(
    old: Path, shifted: Path, tmp_path: Path, command
):
    (tmp_path / "same.extxyz").write_text(shifted.read_text().replace("task=other", "task=lj"))
    settings = [f"start.model={old}", "data.train=same.extxyz", *SHORT]
    code, out, err = command("train", *settings, "run.dir=run")
    assert code == 0, err
    assert errors_at_the_start(tmp_path / "run")["lj"]["energy_mae"] > 5
    assert "references.tasks.lj.energies=fit" in out


def test_old_data_replayed_as_one_more_source_keep_their_task_and_new_elements_begin_as_neighbours(
    old: Path, data_file: Path, shifted: Path, tmp_path: Path, command
):
    frames = read(shifted, ":")
    for atoms in frames[1:12]:
        results = dict(atoms.calc.results)
        results["energy"] += sum(SHIFT[16] - SHIFT[8] for z in atoms.numbers if z == 8)
        atoms.numbers[atoms.numbers == 8] = 16
        atoms.calc = SinglePointCalculator(atoms, **results)
    write(tmp_path / "sulphur.extxyz", frames, format="extxyz")
    settings = [f"start.model={old}", *SHORT]
    both = json.dumps([str(data_file), "sulphur.extxyz"])
    code, out, err = command("train", *settings, f"data.train={both}", "run.dir=run", "loss.tasks={lj: {energy: 0.5}}")
    assert code == 0, err
    assert "new elements begin with experts, gates and embeddings of others: S as O" in out
    assert set(errors_at_the_start(tmp_path / "run")) == {"lj", "other"}
    model = load_model(tmp_path / "run")
    assert model.config.elements == (8, 14, 16)
    assert model.references[1, 16].item() == pytest.approx(model.references[0, 8].item() + SHIFT[16], abs=2.0)
    # What is usual around atoms, too, is what it was.
    before, after = load_model(old).density, model.density
    assert torch.equal(after.centre[[8, 14, 16]], before.centre[[8, 14, 8]])
    assert torch.equal(after.spread[[8, 14, 16]], before.spread[[8, 14, 8]])
    known, wanted = (8, 14), (8, 14, 16)
    assert new_elements(StartConfig(model=old, elements={"S": "Si"}), known, wanted) == {16: 14}
    with pytest.raises(UserError, match=r"does not know Au; it knows O, Si"):
        new_elements(StartConfig(model=old, elements={"S": "Au"}), known, wanted)


def test_a_task_that_only_validates_shows_what_is_forgotten(
    old: Path, data_file: Path, shifted: Path, tmp_path: Path, command
):
    both = [atoms for path in (data_file, shifted) for atoms in read(path, ":") if atoms.info["split"] == "val"]
    write(tmp_path / "val.extxyz", both, format="extxyz")
    settings = [f"start.model={old}", f"data.train={shifted}", "data.val=val.extxyz", *SHORT]
    code, _, err = command("train", *settings, "run.dir=run")
    assert code == 0, err
    for line in metrics(tmp_path / "run", "val"):
        assert set(line["tasks"]) == {"lj", "other"}
    code, _, err = command("train", *settings[1:], "run.dir=new", *TINY)
    assert code == 2
    assert "validation frames of tasks ['lj'] have no training frames" in err


def test_a_run_that_was_started_from_a_model_is_resumed_without_it_to_the_bit(
    old: Path, shifted: Path, tmp_path: Path, command
):
    moved = shutil.copytree(old, tmp_path / "old")
    settings = [f"start.model={moved}", f"data.train={shifted}", *SHORT, "run.val_every=2"]
    assert command("train", *settings, "run.dir=whole", "run.stop_at_step=4")[0] == 0
    assert command("train", *settings, "run.dir=parts", "run.stop_at_step=2")[0] == 0
    shutil.rmtree(moved)
    code, _, err = command("resume", "parts", "run.stop_at_step=4")
    assert code == 0, err
    for kind in ("train", "val"):
        whole, parts = metrics(tmp_path / "whole", kind), metrics(tmp_path / "parts", kind)
        assert [(line["step"], line["loss"]) for line in whole] == [(line["step"], line["loss"]) for line in parts]
    parts = load_file(tmp_path / "parts" / "model.safetensors")
    for name, weight in load_file(tmp_path / "whole" / "model.safetensors").items():
        assert torch.equal(weight, parts[name]), name


def test_ranks_that_share_a_model_start_from_the_weights_and_references_of_one_process(
    old: Path, shifted: Path, tmp_path: Path
):
    settings = [f"start.model={old}", f"data.train={shifted}", *SHORT, "run.val_every=2", "run.stop_at_step=2",
                "run.timeout=60",
                "start.freeze=[blocks.0, down]", "optim.groups=[{match: router, lr_factor: 0.5}]"]  # fmt: skip
    alone = run(*settings, f"run.dir={tmp_path / 'alone'}")
    shared = [*settings, f"run.dir={tmp_path / 'shared'}", "mesh.unit=2"]
    assert run_launched_ranks(2, lambda rank: run(*shared) and None) == ["done"] * 2
    first = load_file(alone / "model.safetensors")
    for name, weight in load_file(tmp_path / "shared" / "model.safetensors").items():
        torch.testing.assert_close(weight, first[name], rtol=1e-8, atol=1e-9, msg=name)
    for kind in ("val", "train"):
        for one, other in zip(metrics(alone, kind), metrics(tmp_path / "shared", kind), strict=True):
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-8)


def test_official_weights_are_a_start_too(data_file: Path, shifted: Path, tmp_path: Path, command):
    from test_compat_runs import official_file

    weights = official_file(tmp_path / "weights.pth.tar")
    settings = [f"start.model={weights}", f"data.train={shifted}", *SHORT, "loss.stress=0"]
    code, out, err = command("train", *settings, "run.dir=run", "start.freeze=[interaction_block]")
    assert code == 0, err
    assert "a published MatRIS for the task default" in out
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["reference_fits"]["other"]["source"].endswith("what the starting weights leave")
    assert errors_at_the_start(tmp_path / "run")["other"]["energy_mae"] < 5
    for wrong, said in ((["start.task=default"], "has one task"), (["model.preset=nano"], "is a published MatRIS")):
        code, _, err = command("train", *settings, *wrong, "run.dir=wrong")
        assert code == 2
        assert said in err


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.width=32", "model.width is 32 here, and 16 in"),
        ("model.preset=micro", "model.blocks is 4 here (preset micro), and 2 in"),
        ("model.preset=matris-6m", "is a MatRIS-MoE; leave model.preset out"),
        ("model.widht=32", "unknown key 'model.widht'"),
        ("model.router.freeze_at=1", "the experts of elements were settled when"),
        ("start.task=none", "has no task 'none'; it has lj"),
        ("start.freeze=[embeding]", "no parameter has 'embeding' in its name"),
        ("start.freeze=['*']", "leave nothing to train"),
        ("start.elements={Xy: O}", "'Xy' is not an element"),
        ("start.elements={Si: O}", "Si is no new element of the data"),
        ("optim.groups=[{match: rooter}]", "optim.groups: no parameter has 'rooter'"),
        ("start.modle=x", "unknown key 'start.modle'"),
        ("references.tasks={x: {scale: 1}}", "references.tasks: there is no task 'x'; there are lj, other"),
        ("loss.tasks={x: {energy: 1}}", "loss.tasks: the data have no task 'x'; they have lj, other"),
    ],
)
def test_what_contradicts_the_weights_or_matches_nothing_is_an_error(
    setting: str, said: str, old: Path, shifted: Path, tmp_path: Path
):
    with pytest.raises(UserError) as raised:
        run(f"start.model={old}", f"data.train={shifted}", *SHORT, setting, f"run.dir={tmp_path / 'run'}")
    assert said in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["start.freeze=[blocks]"], "start.freeze is for runs that start from a model"),
        (["model.preset=start"], "set start.model=PATH as well"),
        (["start.model=nowhere"], "no model at nowhere"),
        (["start.model={data}"], "lj.extxyz: is damaged, no checkpoint"),
    ],
)
def test_a_start_without_a_model_is_an_error(settings: list[str], said: str, data_file: Path, tmp_path: Path):
    settings = [setting.replace("{data}", str(data_file)) for setting in settings]
    with pytest.raises(UserError) as raised:
        run(*settings, f"data.train={data_file}", *SHORT, f"run.dir={tmp_path / 'run'}")
    assert said in str(raised.value)


def test_a_model_that_cannot_start_from_another_says_so(old: Path, data_file: Path, tmp_path: Path):
    config = load_config(None, [f"start.model={old}", f"data.train={data_file}", f"run.dir={tmp_path / 'run'}"])
    with pytest.raises(UserError, match="only starts from random weights"):
        train(config, matris_recipe)


def test_a_model_of_several_tasks_asks_which_a_new_one_begins_as(tmp_path: Path, shifted: Path):
    from matris_model import save_model

    tiny = {"blocks": 1, "width": 8, "edge_width": 8}
    save_model(MatRISMoE.from_preset("nano", **tiny, tasks=("a", "b"), elements=(8,)), tmp_path)
    start = matris_start(StartConfig(model=tmp_path), shared=False)
    with pytest.raises(UserError, match=r"set start\.task to the one of its tasks that it is to begin as \(a, b\)"):
        start.given(("a", "b", "new"))
    start = matris_start(StartConfig(model=tmp_path, task="b"), shared=True)
    assert set(start.given(("a", "b", "new"))) == {"a", "b", "new"}
