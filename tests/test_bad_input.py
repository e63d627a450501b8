"""Bad input ends with exit code 2 and one message that says what, where and how to fix it; nothing is overwritten."""

import gzip
import json
from pathlib import Path

import pytest
from ase.io import read, write

from conftest import TINY


def refused(result: tuple[int, str, str], *parts: str) -> None:
    code, _, err = result
    assert code == 2, err
    assert "Traceback" not in err
    for part in parts:
        assert part in err, f"'{part}' is not in:\n{err}"


@pytest.fixture
def broken(data_file: Path, tmp_path: Path):
    """The data file after a change to its text or frames."""

    def make(change) -> Path:
        path = tmp_path / "broken.extxyz"
        path.write_text(change(data_file.read_text()))
        return path

    return make


def test_a_missing_file(command):
    refused(command("train", "data.train=nowhere.xyz"), "no file nowhere.xyz")


def test_an_empty_file(command, tmp_path: Path):
    (tmp_path / "empty.extxyz").touch()
    refused(command("train", "data.train=empty.extxyz"), "empty.extxyz is empty")


def test_a_file_that_is_no_structure_file(command, tmp_path: Path):
    (tmp_path / "poem.extxyz").write_text("a poem\nis not\na structure\n")
    refused(command("train", "data.train=poem.extxyz"), "poem.extxyz", "damaged")


@pytest.mark.parametrize("cut", [0.5, 0.93])
def test_a_file_cut_short(command, broken, cut: float):
    path = broken(lambda text: text[: int(cut * len(text))].rstrip("\n").rsplit("\n", 1)[0])
    refused(command("train", f"data.train={path}", *TINY), "broken.extxyz", "cut short")


def test_a_compressed_file_cut_short(command, data_file: Path, tmp_path: Path):
    packed = gzip.compress(data_file.read_bytes())
    (tmp_path / "cut.extxyz.gz").write_bytes(packed[: len(packed) // 2])
    refused(command("train", "data.train=cut.extxyz.gz"), "cut.extxyz.gz", "cut short")


def test_no_forces_where_forces_are_in_the_loss(command, broken):
    path = broken(lambda text: text.replace("forces:R:3", "force:R:3"))
    refused(command("train", f"data.train={path}", *TINY), "no key 'forces'", "energy", "force", "data.keys.forces")


def test_forces_under_another_name_are_found_when_named(command, broken):
    path = broken(lambda text: text.replace("forces:R:3", "force:R:3"))
    settings = [f"data.train={path}", *TINY, "run.max_steps=1", "run.stop_at_step=1"]
    assert command("train", *settings, "data.keys.forces=force")[0] == 0


@pytest.mark.parametrize("value", ["NaN", "inf"])
def test_labels_that_are_not_finite(command, data_file: Path, tmp_path: Path, value: str):
    frames = read(data_file, ":")
    frames[7].calc.results["forces"][1, 2] = float(value)
    write(tmp_path / "nan.extxyz", frames, format="extxyz")
    refused(command("train", "data.train=nan.extxyz", *TINY), "frame 7 of nan.extxyz", "'forces'", "atom 1")


def test_a_periodic_cell_without_volume(command, data_file: Path, tmp_path: Path):
    frames = read(data_file, ":")
    frames[2].cell[2] = frames[2].cell[1]
    write(tmp_path / "flat.extxyz", frames, format="extxyz")
    refused(command("train", "data.train=flat.extxyz", *TINY), "frame 2 of flat.extxyz", "no volume", "pbc")


def test_an_unknown_element(command, broken):
    path = broken(lambda text: text.replace("\nSi ", "\nXy ", 1))
    refused(command("train", f"data.train={path}", *TINY), "'Xy' is not an element")


def test_a_validation_element_that_training_lacks(command, data_file: Path, tmp_path: Path):
    frames = read(data_file, ":")
    frames[0].numbers[0] = 79
    write(tmp_path / "gold.extxyz", frames, format="extxyz")
    refused(command("train", "data.train=gold.extxyz", *TINY), "frame 0 of gold.extxyz", "79")


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("optim.learning_rate=0.1", ("unknown key 'optim.learning_rate'",)),
        ("model.router.noise=1", ("model.router: noise is 1", "set freeze_at")),
        ("model.router.freeze_at=9 run.max_steps=9", ("model.router.freeze_at is 9", "never be settled")),
        ("model.router.freeze=9", ("unknown key 'model.router.freeze'", "'model.router.freeze_at'")),
        ("optim.lrr=0.1", ("unknown key 'optim.lrr'", "'optim.lr'")),
        ("run.max_step=3", ("unknown key 'run.max_step'", "'run.max_steps'")),
        ("runn.seed=3", ("unknown key 'runn'", "'run'")),
        ("seed=3", ("unknown key 'seed'", "'run.seed'")),
        ("model.widht=3", ("unknown key 'model.widht'", "'model.width'")),
        ("model.width=ten", ("model.width", "int")),
        ("model.preset=nanno", ("nanno", "'nano'")),
        ("model.heads=3", ("heads = 3 must divide",)),
        ("model.preset=matris-6m model.fused=true", ("model.fused is for MatRIS-MoE",)),
        ("model.triton=true", ("model.triton is for CUDA devices", "run.device=cuda")),
        ("model.preset=matris-6m model.checkpoint=true", ("model.checkpoint is for MatRIS-MoE",)),
        ("run.max_steps=ten", ("run.max_steps", "'ten'")),
        ("optim.lr=-0.1", ("optim.lr", "greater than 0", "-0.1")),
        ("run.dtype=float16", ("run.dtype", "float32", "float64")),
        ("mesh.replica=0", ("mesh.replica",)),
        ("loss.energy=0 loss.forces=0 loss.stress=0", ("nothing to learn",)),
        ("mesh.replica=2", ("needs 2 ranks, but 1 was launched",)),
    ],
)
def test_wrong_settings(command, data_file: Path, setting: str, parts: tuple[str, ...], tmp_path: Path):
    refused(command("train", f"data.train={data_file}", "run.dir=run", *setting.split()), *parts)
    assert not (tmp_path / "run").exists()


def test_a_configuration_that_is_not_yaml(command, tmp_path: Path):
    (tmp_path / "bad.yaml").write_text("run: [unclosed")
    refused(command("train", "bad.yaml"), "bad.yaml is not YAML")
    refused(command("train", "missing.yaml"), "cannot read the configuration missing.yaml")


def test_a_directory_that_holds_a_run_is_left_alone(command, data_file: Path, tmp_path: Path):
    settings = [f"data.train={data_file}", *TINY, "run.max_steps=1", "run.stop_at_step=1", "run.dir=run"]
    assert command("train", *settings)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    refused(command("train", *settings), "already holds a run", "janus-train resume run")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_resuming_where_no_run_is(command):
    refused(command("resume", "nothing"), "no run in nothing")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    from matris_model import MatRISMoE, save_model

    return save_model(MatRISMoE.from_preset("nano", blocks=1, width=8, edge_width=8, elements=(8, 14)), tmp_path / "m")


def test_a_damaged_model(command, model: Path, data_file: Path):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(command("evaluate", model, data_file), "model.safetensors", "damaged")


def test_a_model_of_another_version(command, model: Path, data_file: Path):
    meaning = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps(meaning | {"version": 99}))
    refused(command("evaluate", model, data_file), "version 99", "model.json")


def test_no_model_there(command, data_file: Path):
    refused(command("evaluate", "nowhere", data_file), "no model at nowhere")
    refused(command("info", "nowhere"), "neither a preset", "nano")
    refused(command("info", "nano", "--expert-map", "map.csv"), "'nano' is no saved model")


def test_elements_the_model_has_not_seen(command, model: Path, tmp_path: Path):
    from ase.build import bulk

    write(tmp_path / "gold.extxyz", bulk("Au"), format="extxyz")
    result = command("predict", model, "gold.extxyz", "--output", "out.extxyz")
    refused(result, "frame 0 of gold.extxyz", "Au", "O, Si")
    assert not (tmp_path / "out.extxyz").exists()


def test_several_tasks_to_choose_from(command, data_file: Path, tmp_path: Path):
    from matris_model import MatRISMoE, save_model

    save_model(MatRISMoE.from_preset("nano", blocks=1, width=8, edge_width=8, tasks=("a", "b")), tmp_path / "m")
    refused(command("evaluate", "m", data_file), "'lj'", "--task", "a, b")
    assert command("evaluate", "m", data_file, "--task", "a")[0] == 0
