"""A model file knows what its model says, and is refused where the program that opens it says something else."""

import hashlib
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from matris_model import MatRISMoE, golden, load_model, save_model
from matris_model.golden import first_difference, golden_structures, golden_values
from matris_model.interaction import InteractionBlock
from model_cases import TINY, stirred

DTYPES = (torch.float64, torch.float32)


def meaning(directory):
    return json.loads((directory / "model.json").read_text())


def write_meaning(directory, content):
    (directory / "model.json").write_text(json.dumps(content))


def change_weights(directory, change):
    """Other weights with a checksum that fits them: what only the golden values can find."""
    state = load_file(directory / "model.safetensors")
    change(state)
    save_file(state, directory / "model.safetensors")
    digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    write_meaning(directory, meaning(directory) | {"sha256": digest})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_golden_values_are_those_of_the_model_to_the_last_bit_in_the_file(tmp_path, dtype):
    model = stirred().to(dtype)
    saved = meaning(save_model(model, tmp_path))["golden"]
    assert saved == golden_values(model, golden_structures(model))
    assert all(np.abs(entry["forces"]).max() > 0.01 for entry in saved)
    assert np.abs(saved[0]["stress"]).max() > 1e-4


def test_golden_structures_are_of_the_models_elements_and_tasks_and_always_the_same():
    for elements in ((3,), (1, 8), tuple(range(1, 90))):
        model = MatRISMoE(TINY.replace(elements=elements))
        structures = golden_structures(model)
        again = golden_structures(MatRISMoE(TINY.replace(elements=elements), seed=1))
        for structure, other in zip(structures, again, strict=True):
            model.check_elements(structure.atomic_numbers.tolist())
            assert np.array_equal(structure.positions, other.positions)
            assert structure.task < len(TINY.tasks)
        assert {structure.has_volume for structure in structures} == {True, False}
        assert {structure.task for structure in structures} == {0, 1}


def test_a_large_model_is_checked_by_one_structure(monkeypatch, tmp_path):
    assert len(golden_structures(stirred())) == 3
    monkeypatch.setattr(golden, "_LARGE", 1000)
    assert len(meaning(save_model(stirred(), tmp_path))["golden"]) == 1
    assert load_model(tmp_path).config == TINY


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "name", ["energy_out.weight", "references", "scales", "blocks.0", "blocks.1", "atom_embedding", "edge_embedding"]
)
def test_weights_that_changed_behind_the_checksum_are_found(tmp_path, dtype, name):
    save_model(stirred().to(dtype), tmp_path)

    def change(state):
        for key, tensor in state.items():
            if key.startswith(name) and tensor.is_floating_point():
                tensor *= 1.01

    change_weights(tmp_path, change)
    with pytest.raises(ValueError, match=r"does not compute what it did when it was saved: (energy|forces)"):
        load_model(tmp_path)
    assert isinstance(load_model(tmp_path, check=False), MatRISMoE)


def test_a_program_that_computes_something_else_is_found(tmp_path, monkeypatch):
    save_model(stirred(), tmp_path)
    load_model(tmp_path)
    whole = InteractionBlock.forward

    def other(self, *arguments):
        atoms, edges = whole(self, *arguments)
        return atoms * 1.00001, edges

    monkeypatch.setattr(InteractionBlock, "forward", other)
    with pytest.raises(ValueError, match=rf"saved with torch {re.escape(torch.__version__)}[\s\S]*check=False"):
        load_model(tmp_path)


def test_products_of_reduced_precision_are_found(tmp_path, monkeypatch):
    save_model(stirred().float(), tmp_path)
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda x, w, b=None: (x.bfloat16() @ w.bfloat16().T).to(x.dtype) + (b or 0)
    )
    with pytest.raises(ValueError, match="does not compute what it did"):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_is_no_difference(dtype):
    """Values that were computed in other batches, so by other sums, agree; and so do those of the exact weights."""
    model = stirred().to(dtype)
    structures = golden_structures(model)
    alone = [golden_values(model, [structure])[0] for structure in structures]
    assert first_difference(model, alone) is None
    assert first_difference(model, golden_values(stirred().to(dtype).double(), structures)) is None


def test_a_file_without_golden_values_opens(tmp_path):
    save_model(stirred(), tmp_path)
    content = meaning(tmp_path)
    del content["golden"], content["written_by"]
    write_meaning(tmp_path, content)
    assert load_model(tmp_path).config == TINY


@pytest.mark.parametrize("content", [3, [3], [{}], [{"structure": {"atomic_numbers": [1]}}], {"a": 1}], ids=str)
def test_golden_values_that_are_damaged_are_refused_by_name(tmp_path, content):
    save_model(stirred(), tmp_path)
    write_meaning(tmp_path, meaning(tmp_path) | {"golden": content})
    with pytest.raises(ValueError, match=r"golden structures in .*model\.json are damaged"):
        load_model(tmp_path)


def test_values_of_another_shape_or_kind_are_a_difference(tmp_path):
    model = stirred()
    values = golden_values(model, golden_structures(model))
    values[1]["forces"] = values[1]["forces"][:-1]
    assert "forces of golden structure 1 has shape (6, 3) and had (5, 3)" in first_difference(model, values)
    values = golden_values(model, golden_structures(model))
    values[2]["stress"] = float("nan")
    assert "stress of golden structure 2" in first_difference(model, values)


def test_a_model_that_says_nothing_but_nan_can_be_saved_and_opened(tmp_path):
    model = stirred()
    with torch.no_grad():
        model.energy_out.weight.fill_(float("nan"))
    save_model(model, tmp_path)
    assert load_model(tmp_path).energy_out.weight.isnan().all()


def test_saving_computes_without_a_trace_on_the_model(tmp_path):
    model = stirred().train()
    model.energy_out.weight.grad = torch.ones_like(model.energy_out.weight)
    state = torch.random.get_rng_state()
    save_model(model, tmp_path)
    assert model.training
    assert torch.equal(model.energy_out.weight.grad, torch.ones_like(model.energy_out.weight))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "energy_out.weight")
    assert torch.equal(torch.random.get_rng_state(), state)
