"""The published MatRIS on the command line: official files taken over, and models of its kind trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read, write
from safetensors.numpy import load_file

from conftest import metrics
from matris_model import MatRISCalculator
from matris_model.compat import MatRIS, MatRISConfig

TINY_COMPAT = {
    "num_layers": 1, "node_feat_dim": 12, "edge_feat_dim": 10, "three_body_feat_dim": 8, "mlp_hidden_dims": [8],
    "num_radial": 5, "num_angular": 5, "pairwise_cutoff": 4.0, "three_body_cutoff": 3.0,
}  # fmt: skip
SETTINGS = [
    *(f"model.{name}={value}" for name, value in TINY_COMPAT.items()),
    "data.batch_edges=600", "optim.warmup_steps=1", "run.log_every=1", "run.dir=run",
]  # fmt: skip


def official_file(path: Path, **changes: object) -> Path:
    """What an official file holds, of small random weights."""
    config = MatRISConfig(**(TINY_COMPAT | {"reference_energy": "mptrj"}))
    model = MatRIS(config)
    torch.nn.init.normal_(model.reference_energy.fc.weight)
    torch.save({"config": config.to_reference() | changes, "state_dict": model.state_dict()}, path)
    return path


@pytest.fixture
def bundled_frames(tmp_path: Path) -> Path:
    """A few frames of the bundled set, of one task."""
    from importlib.resources import files

    # The file begins with them; reading all of it would take longer than training.
    frames = read(str(files("janus_train.data") / "bundled.extxyz.gz"), ":24")
    assert {atoms.info["task"] for atoms in frames} == {"molecules"}
    path = tmp_path / "frames.extxyz"
    write(path, frames, format="extxyz")
    return path


def test_an_official_file_becomes_a_model_that_everything_takes(data_file: Path, tmp_path: Path, command):
    weights = official_file(tmp_path / "weights.pth.tar")
    code, out, err = command("export", "--from-matris", weights, "--output", "model")
    assert code == 0, err
    expected = MatRIS.from_file(weights)
    parameters = sum(parameter.numel() for parameter in expected.parameters())
    assert f"{parameters:,} parameters (float32) written to model" in out
    assert json.loads((tmp_path / "model" / "model.json").read_text())["about"] == {"from": "weights.pth.tar"}

    code, out, err = command("predict", "model", data_file, "--output", "predicted.extxyz")
    assert code == 0, err
    calculator = MatRISCalculator(expected)
    # What those without angles give would depend on what they shared a batch with.
    for predicted in [atoms for atoms in read(tmp_path / "predicted.extxyz", ":") if len(atoms) > 4][:3]:
        atoms = predicted.copy()
        atoms.calc = calculator
        assert predicted.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(predicted.get_forces(), atoms.get_forces(), atol=1e-4)

    code, out, err = command("evaluate", "model", data_file, "--json")
    assert code == 0, err
    errors = json.loads(out)["tasks"]["default"]
    assert errors["structures"] == 40
    assert np.isfinite(errors["forces_mae"])
    assert "has no experts to leave out" in command("prune", "model", "--elements", "C", "--output", "small")[2]
    code, out, _ = command("info", "model", "--json")
    assert code == 0
    assert json.loads(out)["parameters_total"] == parameters


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ("cannot be read",)),
        (b"a poem", ("is damaged, no checkpoint",)),
        ({"weights": 1}, ("there is no 'config' here, but weights",)),
        ({"is_conservation": False}, ("is_conservation = False is not supported",)),
        ({"depth": 3}, ("unknown configuration field 'depth'",)),
        ({"num_layers": 2}, ("82 tensors are missing", "interaction_block.1")),
    ],
    ids=["missing", "text", "foreign", "direct forces", "unknown option", "weights missing"],
)
def test_foreign_files_are_refused_by_name(content, parts, tmp_path: Path, command):
    path = tmp_path / "weights.pth.tar"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == {"weights": 1}:
        torch.save(content, path)
    elif content is not None:
        official_file(path, **content)
    code, _, err = command("export", "--from-matris", path, "--output", "model")
    assert code == 2, err
    assert "Traceback" not in err
    for part in ("weights.pth.tar", *parts):
        assert part in err
    assert not (tmp_path / "model").exists()


def test_an_export_overwrites_nothing(tmp_path: Path, command):
    weights = official_file(tmp_path / "weights.pth.tar")
    (tmp_path / "model").mkdir()
    code, _, err = command("export", "--from-matris", weights, "--output", "model")
    assert code == 2
    assert "model exists; remove it or choose another --output" in err
    assert not list((tmp_path / "model").iterdir())


def test_it_trains_and_resumes_like_any_model(bundled_frames: Path, tmp_path: Path, command):
    settings = [
        f"data.train={bundled_frames}",
        "model.preset=matris-10m",
        *SETTINGS,
        "run.max_steps=3",
        "loss.stress=0",
        "references.ridge=0",  # of the few frames' compositions some always go together
    ]
    code, _, err = command("train", *settings, "run.stop_at_step=2")
    assert code == 0, err
    code, _, err = command("resume", "run")
    assert code == 0, err
    lines = metrics(tmp_path / "run", "train")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
    code, _, err = command("train", *settings, "run.dir=whole")
    assert code == 0, err
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    for name, weight in load_file(tmp_path / "run" / "model.safetensors").items():
        assert np.array_equal(weight, whole[name]), name

    content = json.loads((tmp_path / "run" / "model.json").read_text())
    assert content["kind"] == "MatRIS"
    assert content["config"]["tasks"] == ["molecules"]
    assert content["config"]["reference_energy"] == "data"
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    trained = whole["reference_energy.fc.weight"][0]
    assert data["references"]["molecules"]
    for number, energy in data["references"]["molecules"].items():
        assert trained[int(number) - 1] == pytest.approx(energy, rel=1e-6)
    code, out, err = command("evaluate", "run", bundled_frames, "--json")
    assert code == 0, err
    assert set(json.loads(out)["tasks"]) == {"molecules"}


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["model.preset=matris-10"], ("no preset 'matris-10'", "'matris-10m'")),
        (["model.preset=matris-6m", "model.num_layer=1"], ("unknown configuration field 'num_layer'", "'num_layers'")),
        (["model.preset=matris-6m", "model.tasks=[a]"], ("model.tasks follows from the data",)),
        (["model.preset=matris-6m", "model.router.freeze_at=1"], ("model.router is for MatRIS-MoE",)),
        (["model.preset=matris-6m", "model.num_radial=4"], ("num_angular = 7 must equal num_radial = 4",)),
    ],
)
def test_wrong_settings_are_refused(settings: list[str], parts: tuple[str, ...], data_file: Path, command):
    code, _, err = command("train", f"data.train={data_file}", "run.dir=run", *settings)
    assert code == 2, err
    for part in parts:
        assert part in err


def test_data_of_several_tasks_are_refused(data_file: Path, tmp_path: Path, command):
    text = data_file.read_text()
    place = len(text) // 2
    (tmp_path / "two.extxyz").write_text(text[:place] + text[place:].replace("task=lj", "task=other"))
    code, _, err = command("train", "data.train=two.extxyz", "model.preset=matris-6m", "run.dir=run")
    assert code == 2, err
    assert "one table of reference energies" in err
    assert "lj, other" in err


def test_info_counts_the_published_sizes(command):
    for preset, parameters in (("matris-6m", 6_286_736), ("matris-10m", 10_443_505)):
        code, out, _ = command("info", preset, "--json")
        assert code == 0
        assert json.loads(out)["parameters_total"] == parameters
