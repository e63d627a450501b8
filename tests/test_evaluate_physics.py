"""The physics card on the command line: of files and of runs, as a table and as JSON."""

import json

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import write

from matris_model import MatRISMoE, save_model

TINY = {
    "blocks": 1, "width": 16, "edge_width": 8, "heads": 2, "experts": 4, "expert_hidden": 8, "message_hidden": 8,
    "feature_hidden": 8, "structure_width": 4, "cutoff": 4.0, "near_cutoff": 3.0, "tasks": ("salts", "molecules"),
}  # fmt: skip


@pytest.fixture
def structures(tmp_path):
    frames = []
    for atoms, task in ((bulk("NaCl", "rocksalt", a=5.0), "salts"), (molecule("H2O"), "molecules")):
        atoms.info = {"task": task, "energy": 0.0}
        atoms.arrays["forces"] = np.zeros((len(atoms), 3))
        frames.append(atoms)
    write(tmp_path / "mine.extxyz", frames, format="extxyz")
    return "mine.extxyz"


def test_the_card_is_printed_and_stands_beside_the_model_and_in_the_report_of_a_run(command, structures, tmp_path):
    save_model(MatRISMoE.from_preset("nano", **TINY), tmp_path / "m")
    code, out, err = command("evaluate", "m", structures, "--physics", "--md-ps", "0.01", "--json")
    assert code == 0, err
    card = json.loads(out)["physics"]
    assert card == json.loads((tmp_path / "m" / "physics.json").read_text())
    assert set(card["tasks"]) == {"salts", "molecules"}
    assert [row["name"] for row in card["tasks"]["salts"]["prototypes"]] == ["ClNa"]
    assert [row["kind"] for row in card["tasks"]["molecules"]["prototypes"]] == ["molecule"]
    assert {tuple(dimer["symbols"]) for dimer in card["tasks"]["molecules"]["dimers"]} == {("H", "H"), ("H", "O")}
    assert "salts: 1 dimers" in err
    assert not (tmp_path / "m" / "report.html").exists()

    (tmp_path / "m" / "config.yaml").write_text("run:\n  max_steps: 1\n")
    code, out, err = command("evaluate", "m", structures, "--physics", "--md-ps", "0")
    assert code == 0, err
    assert "F MAE meV/Å" in out
    assert "salts: ClNa" in out
    assert "physics" in (tmp_path / "m" / "report.html").read_text()
    assert "dynamics" not in (tmp_path / "m" / "physics.json").read_text()


def test_mistakes_are_told_before_anything_is_computed(command, structures, tmp_path):
    save_model(MatRISMoE.from_preset("nano", **TINY | {"tasks": ("a", "b")}), tmp_path / "m")
    code, _, err = command("evaluate", "m", structures, "--physics")
    assert (code, "choose --task from a, b" in err) == (2, True)
    assert not (tmp_path / "m" / "physics.json").exists()


def test_without_files_a_run_is_judged_by_the_frames_that_validated_it(command, data_file, tmp_path):
    save_model(MatRISMoE.from_preset("nano", **TINY | {"tasks": ("lj",)}), tmp_path / "m")
    (tmp_path / "m" / "config.yaml").write_text(f"data:\n  train: [{data_file}]\n")
    code, out, err = command("evaluate", "m", "--json")
    assert code == 0, err
    assert json.loads(out)["tasks"]["lj"]["structures"] == 8
