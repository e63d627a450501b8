"""Whole runs on one process: what they leave behind, and that they can be taken up again."""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read
from safetensors.numpy import load_file

from conftest import TINY, metrics


@pytest.fixture(scope="module")
def finished_run(data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from janus_train import load_config, train
    from janus_train.recipes.matris import matris_recipe

    directory = tmp_path_factory.mktemp("runs") / "finished"
    settings = [f"data.train={data_file}", *TINY, "run.max_steps=30", "run.val_every=10", f"run.dir={directory}"]
    return train(load_config(None, settings), matris_recipe)


def test_a_run_directory_holds_all_that_is_promised(finished_run: Path):
    names = {path.name for path in finished_run.iterdir()}
    assert names >= {
        "config.yaml", "environment.json", "data.json", "metrics.jsonl", "checkpoints", "model.safetensors",
        "model.json", "evaluation.json", "parity.npz", "experts.json", "report.html",
    }  # fmt: skip
    assert {line["kind"] for line in map(json.loads, (finished_run / "metrics.jsonl").open())} == {"train", "val"}
    first, validation = metrics(finished_run, "train")[0], metrics(finished_run, "val")[0]
    assert set(first) >= {
        "step", "epoch", "loss", "loss_energy", "loss_forces", "loss_stress", "lr", "grad_norm", "seconds", "skipped",
        "structures_per_s", "atoms_per_s", "edges_per_s", "tflops_per_s", "memory_mb", "bytes_sent",
    }  # fmt: skip
    assert set(validation) >= {"step", "loss", "best", "watch", "tasks", "experts", "seconds"}
    assert set(validation["tasks"]["lj"]) >= {"energy_mae", "forces_mae", "stress_mae", "forces_mae_zero"}
    assert not list((finished_run / "checkpoints").glob(".*"))
    environment = json.loads((finished_run / "environment.json").read_text())
    assert {"python", "torch", "janus-train", "matris-model"} <= set(environment)


def test_training_lowers_the_loss(finished_run: Path):
    losses = [line["loss"] for line in metrics(finished_run, "train")]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_the_saved_configuration_repeats_the_run_to_the_bit(finished_run: Path, tmp_path: Path, command):
    code, _, err = command("train", finished_run / "config.yaml", f"run.dir={tmp_path / 'again'}")
    assert code == 0, err
    again = load_file(tmp_path / "again" / "model.safetensors")
    for name, weight in load_file(finished_run / "model.safetensors").items():
        assert np.array_equal(weight, again[name]), name


@pytest.mark.parametrize(
    "switches",
    [
        ["run.checkpoint_in_background=false"],
        ["run.deterministic=true", "model.router.noise=0.02", "model.router.freeze_at=6"],
    ],
)
def test_n_steps_equal_k_steps_stop_resume_and_the_others_bit_for_bit(
    switches: list[str], data_file: Path, tmp_path: Path, command
):
    settings = [f"data.train={data_file}", *TINY, "run.max_steps=8", "run.val_every=3", "run.keep_checkpoints=1",
                *switches]  # fmt: skip
    assert command("train", *settings, f"run.dir={tmp_path / 'whole'}")[0] == 0
    code, out, _ = command("train", *settings, f"run.dir={tmp_path / 'parts'}", "run.stop_at_step=4")
    assert code == 0
    assert "janus-train resume" in out
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["step-000004"]
    assert command("resume", tmp_path / "parts")[0] == 0
    for kind in ("train", "val"):
        whole, parts = metrics(tmp_path / "whole", kind), metrics(tmp_path / "parts", kind)
        assert [(line["step"], line["loss"], line.get("grad_norm")) for line in whole] == [
            (line["step"], line["loss"], line.get("grad_norm")) for line in parts
        ]
    parts = load_file(tmp_path / "parts" / "model.safetensors")
    for name, weight in load_file(tmp_path / "whole" / "model.safetensors").items():
        assert np.array_equal(weight, parts[name]), name


def test_a_run_that_is_asked_to_stop_says_so_to_whoever_may_start_it_again(
    data_file: Path, tmp_path: Path, command, monkeypatch
):
    from janus_train import loop

    plain = loop.learning_rate

    def asked_in_the_second_step(step, *rest):
        if step == 1:
            signal.raise_signal(signal.SIGTERM)
        return plain(step, *rest)

    monkeypatch.setattr(loop, "learning_rate", asked_in_the_second_step)
    settings = [f"data.train={data_file}", *TINY, "run.max_steps=3", f"run.dir={tmp_path / 'run'}"]
    code, out, _ = command("train", *settings)
    assert code == 75
    assert f"stopped at step 2; go on with: janus-train resume {tmp_path / 'run'}" in out
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]


@pytest.mark.parametrize("freeze_at", [3, 4])
def test_experts_settle_once_wherever_a_run_is_cut(freeze_at: int, data_file: Path, tmp_path: Path, command):
    settings = [f"data.train={data_file}", *TINY, "run.max_steps=6", f"run.dir={tmp_path / 'run'}",
                "model.router.noise=0.02", f"model.router.freeze_at={freeze_at}"]  # fmt: skip
    assert command("train", *settings, "run.stop_at_step=4")[0] == 0
    code, _, err = command("resume", tmp_path / "run", "model.router.freeze_at=5")
    if freeze_at == 3:
        assert code == 2
        assert "were frozen at step 3 and step 4 is next; set it to 3" in err
        return
    assert code == 0, err
    state = load_file(tmp_path / "run" / "model.safetensors")
    assert {int(moment) for name, moment in state.items() if name.endswith("frozen_at")} == {5}


@pytest.mark.parametrize("switch", ["model.checkpoint=true", "model.fused=true"])
def test_switches_for_speed_and_memory_do_not_change_the_run(
    switch: str, data_file: Path, tmp_path: Path, command, monkeypatch
):
    # What the compiler makes is its own business; how the pieces are put together is not.
    plain_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: plain_compile(f, dynamic=dynamic, backend="eager"))
    settings = [f"data.train={data_file}", *TINY, "run.max_steps=3", "run.dtype=float64"]
    assert command("train", *settings, f"run.dir={tmp_path / 'plain'}")[0] == 0
    code, _, err = command("train", *settings, switch, f"run.dir={tmp_path / 'switched'}")
    assert code == 0, err
    for plain, switched in zip(
        metrics(tmp_path / "plain", "train"), metrics(tmp_path / "switched", "train"), strict=True
    ):
        assert switched["loss"] == pytest.approx(plain["loss"], rel=1e-10)
        assert switched["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-10)


@pytest.mark.parametrize("asked", [False, True])
def test_kernels_are_passed_to_the_model_where_they_are_asked_for(asked: bool, data_file: Path, monkeypatch):
    from janus_train import load_config
    from janus_train.data.load import load_data
    from janus_train.data.statistics import fit_statistics
    from janus_train.recipes import matris
    from matris_model import PLAIN

    def product(rows, weights, groups):
        return PLAIN.product(rows, weights, groups)

    monkeypatch.setattr(matris, "triton_formulas", lambda rest: replace(rest, product=product))
    settings = [f"data.train={data_file}", *TINY, f"model.triton={asked}", "run.device=cuda"]
    config = load_config(None, settings)
    data = load_data(config)
    model = matris.matris_recipe(config.model, data, fit_statistics(data.train, data.tasks), 0).model
    assert model.blocks[0].message_experts.product is (product if asked else PLAIN.product)


def test_a_new_model_knows_what_is_usual_around_atoms_of_its_training_set(data_file: Path):
    from janus_graph import build_graph
    from janus_train import load_config
    from janus_train.data.load import load_data
    from janus_train.data.statistics import fit_statistics
    from janus_train.recipes.matris import matris_recipe
    from matris_model import MatRISMoE

    config = load_config(None, [f"data.train={data_file}", *TINY])
    data = load_data(config)
    model = matris_recipe(config.model, data, fit_statistics(data.train, data.tasks), 0).model
    same = MatRISMoE(model.config, 0)
    assert torch.equal(same.density.mix, model.density.mix)
    same.calibrate(
        build_graph([frame.structure for frame in data.train], model.config.cutoff, model.config.near_cutoff)
    )
    elements = list(data.elements)
    for name in ("centre", "spread"):
        found, expected = getattr(model.density, name)[elements], getattr(same.density, name)[elements]
        torch.testing.assert_close(found, expected)
        assert not torch.equal(found, getattr(MatRISMoE(model.config, 0).density, name)[elements])


def test_kernels_without_triton_are_refused(data_file: Path, monkeypatch):
    from janus_train import UserError, load_config
    from janus_train.data.load import load_data
    from janus_train.data.statistics import fit_statistics
    from janus_train.recipes.matris import matris_recipe

    for name in [name for name in sys.modules if name.startswith(("janus_moe.kernels", "matris_model.kernels"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    config = load_config(None, [f"data.train={data_file}", *TINY, "model.triton=true", "run.device=cuda"])
    data = load_data(config)
    with pytest.raises(UserError, match=r"model\.triton: these kernels need the package triton"):
        matris_recipe(config.model, data, fit_statistics(data.train, data.tasks), 0)


def test_lines_after_the_checkpoint_are_done_again_not_doubled(data_file: Path, tmp_path: Path, command):
    settings = [f"data.train={data_file}", *TINY, "run.max_steps=6", f"run.dir={tmp_path / 'run'}"]
    assert command("train", *settings, "run.stop_at_step=3")[0] == 0
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 4, "loss": 1.0}\n{"kind": "tra')  # killed in step 5
    assert command("resume", tmp_path / "run")[0] == 0
    assert [line["step"] for line in metrics(tmp_path / "run", "train")] == [1, 2, 3, 4, 5, 6]


def test_resume_refuses_data_that_have_changed(data_file: Path, tmp_path: Path, command):
    own = tmp_path / "own.extxyz"
    own.write_text(data_file.read_text())
    settings = [f"data.train={own}", *TINY, "run.max_steps=4", "run.stop_at_step=2", f"run.dir={tmp_path / 'run'}"]
    assert command("train", *settings)[0] == 0
    own.write_text(data_file.read_text().replace(" 0.", " 0.5", 1))
    code, _, err = command("resume", tmp_path / "run")
    assert code == 2
    assert "the data have changed" in err


def test_the_saved_model_is_what_the_run_judged(finished_run: Path, data_file: Path, command, tmp_path: Path):
    from matris_model import MatRISCalculator

    judged = json.loads((finished_run / "evaluation.json").read_text())["tasks"]["lj"]
    errors = []
    for atoms in read(data_file, ":"):
        if atoms.info["split"] == "val":
            labels = atoms.get_forces()
            atoms.calc = MatRISCalculator(finished_run)
            errors.append(np.abs(atoms.get_forces() - labels))
    assert np.concatenate(errors).mean() == pytest.approx(judged["forces_mae"], rel=1e-5)

    held_out = tmp_path / "val.extxyz"
    from ase.io import write

    write(held_out, [atoms for atoms in read(data_file, ":") if atoms.info["split"] == "val"], format="extxyz")
    code, out, _ = command("evaluate", finished_run, held_out, "--json")
    assert code == 0
    assert json.loads(out)["tasks"]["lj"]["forces_mae"] == pytest.approx(judged["forces_mae"], rel=1e-5)
    assert "F MAE meV/Å" in command("evaluate", finished_run, held_out)[1]


def test_predict_writes_what_the_calculator_says(finished_run: Path, data_file: Path, tmp_path: Path, command):
    from matris_model import MatRISCalculator

    output = tmp_path / "predicted.extxyz"
    assert command("predict", finished_run, data_file, "--output", output)[0] == 0
    predicted, given = read(output, ":"), read(data_file, ":")
    assert len(predicted) == len(given)
    for one, other in list(zip(predicted, given, strict=True))[:4]:
        other.calc = MatRISCalculator(finished_run)
        assert one.get_potential_energy() == pytest.approx(other.get_potential_energy(), abs=1e-5)
        np.testing.assert_allclose(one.get_forces(), other.get_forces(), atol=1e-5)
    before = output.read_text()
    code, _, err = command("predict", finished_run, data_file, "--output", output)
    assert code == 2
    assert "exists" in err
    assert output.read_text() == before


def test_evaluate_has_tables_by_task_element_and_group(finished_run: Path, data_file: Path, tmp_path: Path, command):
    frames = read(data_file, ":")
    for number, atoms in enumerate(frames):
        atoms.info |= {"config_type": "odd" if number % 2 else "even"} if number < 30 else {}
    from ase.io import write

    write(tmp_path / "kinds.extxyz", frames, format="extxyz")
    code, out, err = command(
        "evaluate", finished_run, tmp_path / "kinds.extxyz", "--group-key", "config_type", "--json"
    )
    assert code == 0, err
    tables = json.loads(out)
    assert set(tables["groups"]) == {"lj/even", "lj/odd"}
    assert sum(row["structures"] for row in tables["groups"].values()) == 30
    assert set(tables["elements"]) == {"O", "Si"}
    code, out, _ = command("evaluate", finished_run, tmp_path / "kinds.extxyz", "--group-key", "config_type")
    assert code == 0
    assert all(name in out for name in ("lj/even", "lj/odd", "element", "Si", "group"))


def test_a_benchmark_of_a_saved_model_goes_on_where_it_was_and_is_printed(finished_run: Path, tmp_path: Path, command):
    text = "".join(f"2\nsio_{number:02d} {2.0 * number}\nSi 0 0 0\nO 0 0 {1.6 + 0.1 * number}\n" for number in range(3))
    (tmp_path / "own.xyz").write_text(text)
    options = ("--benchmark", "wiggle150", "--data", tmp_path / "own.xyz", "--output", tmp_path / "found")
    code, out, err = command("evaluate", finished_run, *options, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["summary"]["conformers"] == 2
    assert found == json.loads((tmp_path / "found" / "wiggle150.json").read_text())
    answers = tmp_path / "found" / "wiggle150.answers.jsonl"
    answers.write_text("".join(answers.read_text().splitlines(keepends=True)[:2]))
    code, out, _ = command("evaluate", finished_run, *options)
    assert code == 0
    assert "kcal/mol" in out
    assert f"{found['summary']['mae']:.4g}" in out
    for wrong, says in (
        (("--benchmark", "wigle150", "--data", tmp_path), "there are matbench-discovery"),
        (("--benchmark", "x23"), "needs its files as --data"),
        (("--benchmark", "x23", "--data", tmp_path / "none"), "no such file"),
        (("--data", tmp_path), "belong to --benchmark"),
    ):
        code, _, err = command("evaluate", finished_run, *wrong)
        assert code == 2
        assert says in err


def test_a_report_can_be_written_again(finished_run: Path, command):
    report = finished_run / "report.html"
    before = report.read_bytes()
    report.unlink()
    assert command("report", finished_run)[0] == 0
    assert report.read_bytes() == before


def test_with_nothing_given_the_bundled_data_are_trained_on(command, tmp_path: Path):
    code, out, err = command("train", "run.max_steps=2", "data.batch_edges=1500", "run.stop_at_step=1")
    assert code == 0, err
    assert "bundled" in out
    tasks = json.loads((tmp_path / "runs" / "nano-001" / "data.json").read_text())["tasks"]
    assert len(tasks) >= 4
    code, out, _ = command("train", "run.max_steps=2", "data.batch_edges=1500", "run.stop_at_step=1")
    assert code == 0
    assert "nano-002" in out


def test_a_step_with_a_nan_loss_is_skipped_and_counted_and_its_structures_are_written(
    data_file: Path, tmp_path: Path, command
):
    settings = [f"data.train={data_file}", *TINY, "run.dir=run", "run.max_bad_steps=3", "optim.lr=1e30",
                "optim.warmup_steps=0", "optim.clip=1e30", "run.max_steps=50", "run.val_every=1000"]  # fmt: skip
    code, _, err = command("train", *settings)
    assert code == 2
    assert "3 steps in a row had no finite gradient" in err
    kept = read(tmp_path / "run" / "bad_batches.extxyz", ":")
    assert kept
    assert all("lj.extxyz" in atoms.info["origin"] for atoms in kept)


def test_info_counts_the_published_sizes(command):
    for preset, total, active in (("S", 1.09e9, 0.19e9), ("M", 2.47e9, 0.56e9), ("L", 11.5e9, 2.89e9)):
        code, out, _ = command("info", preset, "--json")
        assert code == 0
        counted = json.loads(out)
        assert counted["parameters_total"] == pytest.approx(total, rel=0.03)
        assert counted["parameters_active"] == pytest.approx(active, rel=0.03)
    assert "active" in command("info", "nano")[1]


def test_moe_is_no_black_box_use_of_experts_is_logged_and_shown_and_written_to_files(
    finished_run: Path, tmp_path: Path, command
):
    layers = json.loads((finished_run / "experts.json").read_text())["layers"]
    assert [layer["symbols"] for layer in layers] == [["O", "Si"]] * 4
    atoms = json.loads((finished_run / "data.json").read_text())["atoms"]
    for line in metrics(finished_run, "val"):
        assert set(line["experts"]) == {layer["name"] for layer in layers}
    code, out, _ = command("info", finished_run, "--json", "--expert-map", tmp_path / "map.json")
    assert code == 0
    told, written = json.loads(out)["experts"], json.loads((tmp_path / "map.json").read_text())
    for layer in layers:
        assert told[layer["name"]] == layer["statistics"]
        assert sum(layer["load"]) == 2 * sum(atoms.values())
        assert layer["statistics"]["dead"] == layer["load"].count(0)
        for z, weights in zip(["8", "14"], layer["weights"], strict=True):
            found = written[layer["name"]][z]
            assert [found.get(str(expert), 0.0) for expert in range(4)] == pytest.approx(weights, abs=1e-4)
    assert layers[0]["name"] in command("info", finished_run)[1]
    report = (finished_run / "report.html").read_text()
    assert report.count('aria-label="periodic table of groups"') == len(layers)
    assert report.count('aria-label="experts-') == len(layers)


def test_a_pruned_model_is_smaller_and_predicts_the_same(finished_run: Path, data_file: Path, tmp_path: Path, command):
    from matris_model import MatRISCalculator

    code, out, err = command("prune", finished_run, "--elements", "Si, O", "--output", tmp_path / "both")
    assert code == 0, err
    assert "experts a layer written to" in out
    code, out, _ = command("prune", finished_run, "--elements", "Si", "--output", tmp_path / "silicon")
    assert code == 0
    assert "2 of 4 experts" in out
    frames = read(data_file, ":")
    (silicon, *_) = [atoms for atoms in frames if set(atoms.numbers) == {14}]
    for atoms, place in ((frames[0], "both"), (silicon, "silicon")):
        expected = MatRISCalculator(finished_run).get_property("forces", atoms)
        assert np.array_equal(MatRISCalculator(tmp_path / place).get_property("forces", atoms), expected)
    for elements, part in (
        ("Au", "has not seen Au"),
        ("Si,Xy", "'Xy' is not an element"),
        ("", "'' is not an element"),
    ):
        code, _, err = command("prune", finished_run, "--elements", elements, "--output", tmp_path / "new")
        assert code == 2
        assert part in err
    code, _, err = command("prune", finished_run, "--elements", "Si", "--output", tmp_path / "both")
    assert code == 2
    assert "exists" in err


def test_check_data_tells_what_is_there_and_what_looks_wrong(data_file: Path, tmp_path: Path, command):
    from ase.io import write

    frames = read(data_file, ":")
    del frames[24]  # one of its forces is large, as chance would have it
    write(tmp_path / "good.extxyz", frames, format="extxyz")
    code, out, _ = command("check-data", "good.extxyz")
    assert code == 0
    assert "lj" in out
    frames[3].positions[1] = frames[3].positions[0] + 0.1
    write(tmp_path / "close.extxyz", frames, format="extxyz")
    code, out, _ = command("check-data", tmp_path / "close.extxyz", "--json")
    assert code == 3
    report = json.loads(out)
    assert report["tasks"]["lj"]["train"] == 31
    assert any("too close" in found["what"] and "frame 3 of" in found["frames"][0] for found in report["suspicions"])


def test_a_run_from_a_store_is_the_run_from_its_files(data_file: Path, command):
    """Converted by two workers, edges counted beforehand or by the run; weights that are no whole numbers; resumed."""
    code, out, err = command("data", "convert", data_file, "--output", "store", "--workers", 2)
    assert (code, "40 frames in 1 shard(s)" in out) == (0, True), err
    code, out, _ = command("data", "measure", "store", "--cutoff", 4, "--near-cutoff", 3, "--workers", 1)
    assert (code, "edges below 4 Å" in out) == (0, True)
    losses = []
    for name in (str(data_file), "store"):
        settings = [f"data.train=[{{path: {name}, weight: 1.5}}]", *TINY, "run.max_steps=50"]
        code, _, err = command("train", *settings, f"run.dir={Path(name).stem}-run", "run.stop_at_step=3")
        assert code == 0, err
        assert command("resume", f"{Path(name).stem}-run", "run.stop_at_step=5")[0] == 0
        losses.append([line["loss"] for line in metrics(Path(f"{Path(name).stem}-run"), "train")])
    assert len(losses[0]) == 5
    assert losses[0] == losses[1]


def test_the_schema_describes_every_key(command):
    schema = json.loads(command("schema")[1])
    assert {"run", "data", "model", "start", "references", "loss", "optim", "mesh"} <= set(schema["properties"])
