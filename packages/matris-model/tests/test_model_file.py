"""Models survive a file to the bit, and files that are missing, damaged or of another kind are refused by name."""

import hashlib
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from janus_graph import build_graph
from matris_model import load_model, model_file, save_model
from model_cases import EVERYWHERE, TINY, random_structure, stirred

PROPERTIES = ("energy", "forces", "stress", "magmoms")


@pytest.fixture
def saved(tmp_path):
    return save_model(stirred(), tmp_path / "run")


def rewrite_meaning(directory, **changes):
    content = json.loads((directory / "model.json").read_text()) | changes
    (directory / "model.json").write_text(json.dumps(content))


def replace_weights(directory, data: bytes):
    """Other weights with a checksum that fits them, as somebody who means it would write."""
    (directory / "model.safetensors").write_bytes(data)
    rewrite_meaning(directory, sha256=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("place", ["", "model.safetensors", "model.json"], ids=["directory", "weights", "meaning"])
def test_what_is_saved_is_loaded_to_the_bit(tmp_path, dtype, place):
    model = stirred().to(dtype)
    directory = save_model(model, tmp_path / "some" / "run", about={"from": "here"})
    loaded = load_model(directory / place)
    assert loaded.config == model.config
    assert loaded.dtype == dtype
    assert not loaded.training
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, expected in model.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected), name
    assert json.loads((directory / "model.json").read_text())["about"] == {"from": "here"}


def test_a_loaded_model_gives_the_same_values_to_the_bit(saved):
    graph = build_graph([random_structure(2, 3, (2, 2, 1), EVERYWHERE)], TINY.cutoff, TINY.near_cutoff)
    found, expected = load_model(str(saved))(graph, PROPERTIES), stirred()(graph, PROPERTIES)
    assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in PROPERTIES)


def test_saving_leaves_two_files_and_the_model_as_it_was(tmp_path):
    model = stirred()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    directory = save_model(model, tmp_path)
    assert sorted(path.name for path in directory.iterdir()) == ["model.json", "model.safetensors"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_saving_over_an_old_model_replaces_it(saved):
    save_model(stirred(TINY.replace(blocks=1), seed=5), saved)
    assert load_model(saved).config.blocks == 1
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("breaks", ["weights", "meaning"])
def test_a_save_that_fails_leaves_the_old_model(saved, monkeypatch, breaks):
    def fail_after_writing(state, path):
        path.write_bytes(b"half a file")
        raise OSError("no space left on device")

    if breaks == "weights":
        monkeypatch.setattr(model_file, "save_file", fail_after_writing)
        with pytest.raises(OSError, match="no space"):
            save_model(stirred(seed=5), saved)
    else:
        with pytest.raises(TypeError, match="not JSON serializable"):
            save_model(stirred(seed=5), saved, about={"not plain": object()})
    loaded, old = load_model(saved), stirred()
    assert all(torch.equal(value, old.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("missing", ["model.json", "model.safetensors"])
def test_a_model_with_a_file_missing_is_refused(saved, missing):
    (saved / missing).unlink()
    with pytest.raises(ValueError, match=r"no model at .*run"):
        load_model(saved)


def test_a_place_without_a_model_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere" / "model.json"):
        with pytest.raises(ValueError, match="no model at") as caught:
            load_model(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "\0\0", "not json"])
def test_a_damaged_description_is_refused_by_name(saved, text):
    (saved / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.json is damaged"):
        load_model(saved)


def test_bytes_that_are_no_text_are_refused_by_name(saved):
    (saved / "model.json").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ValueError, match=r"model\.json is damaged"):
        load_model(saved)


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"format": "something else"}'])
def test_a_description_of_something_else_is_refused_by_name(saved, text):
    (saved / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.json does not describe a matris-moe model"):
        load_model(saved)


def test_another_version_is_refused_and_both_are_named(saved):
    rewrite_meaning(saved, version=99)
    with pytest.raises(ValueError, match=r"model\.json is of version 99, this program reads version 5"):
        load_model(saved)


@pytest.mark.parametrize("kept", [0, 4, 100, -1], ids=["empty", "4 bytes", "100 bytes", "all but one"])
@pytest.mark.parametrize("consistent", [False, True], ids=["old checksum", "new checksum"])
def test_truncated_weights_are_refused_by_name(saved, kept, consistent):
    data = (saved / "model.safetensors").read_bytes()[:kept]
    if consistent:
        replace_weights(saved, data)
    else:
        (saved / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors .*damaged"):
        load_model(saved)


def test_one_flipped_bit_is_found(saved):
    data = bytearray((saved / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (saved / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"model\.safetensors does not belong to model\.json"):
        load_model(saved)


def test_weights_of_another_model_are_refused(saved, tmp_path):
    other = save_model(stirred(TINY.replace(blocks=1)), tmp_path / "other")
    replace_weights(saved, (other / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"model\.safetensors [\s\S]*Missing key"):
        load_model(saved)


def test_weights_of_another_shape_are_refused(saved):
    state = load_file(saved / "model.safetensors")
    state["energy_out.weight"] = state["energy_out.weight"][:, :-1].contiguous()
    save_file(state, saved / "model.safetensors")
    replace_weights(saved, (saved / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"model\.safetensors [\s\S]*size mismatch"):
        load_model(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {**TINY.to_dict(), "depth": 3}},
        {"config": {**TINY.to_dict(), "heads": 3}},
        {"config": {**TINY.to_dict(), "width": "wide"}},
        {"config": [1, 2]},
        {"config": None},
        {"dtype": "float48"},
        {"dtype": None},
    ],
    ids=str,
)
def test_descriptions_that_make_no_model_are_refused_by_name(saved, changes):
    rewrite_meaning(saved, **changes)
    with pytest.raises(ValueError, match=r"model\.json beside it is damaged"):
        load_model(saved)


class WritesAFile:
    """Runs code where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("consistent", [False, True], ids=["old checksum", "new checksum"])
def test_loading_executes_no_pickle(saved, tmp_path, consistent):
    proof = tmp_path / "proof"
    data = pickle.dumps(WritesAFile(proof))
    if consistent:
        replace_weights(saved, data)
    else:
        (saved / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_model(saved)
    assert not proof.exists()
    pickle.loads(data).close()
    assert proof.exists()
