"""Official outputs are met: energies, forces, stress, magnetic moments and second-order gradients, in float64."""

import json

import numpy as np
import pytest
import torch

from compat_cases import fixture_directory
from janus_graph import Structure, build_graph
from matris_model.compat import MatRIS

FILES = fixture_directory()
pytestmark = pytest.mark.skipif(
    not (FILES / "parity_small.npz").exists(),
    reason=f"no official outputs in {FILES} (parity_small.npz, state_dict_keys.json); set JANUS_SHARED to find them",
)

GPA = 160.21766208  # of an eV/Å³, as the reference has it
TOLERANCE = 1e-7
NAMES = ("nacl", "zro2", "ethanol", "cu111", "selfimg", "noangle")
FLAVOURS = {"A": "SH angles, rms norm", "B": "Fourier angles, layer norm"}


@pytest.fixture(scope="module")
def arrays():
    with np.load(FILES / "parity_small.npz") as data:
        return dict(data)


@pytest.fixture(scope="module", params=FLAVOURS, ids=FLAVOURS.values())
def flavour(request):
    return request.param


@pytest.fixture(scope="module")
def model(flavour, arrays):
    prefix = f"{flavour}/sd/"
    state = {
        key.removeprefix(prefix): torch.from_numpy(value) for key, value in arrays.items() if key.startswith(prefix)
    }
    return MatRIS.from_reference({"config": json.loads(str(arrays[f"{flavour}/config_json"])), "state_dict": state})


def structure(arrays, name):
    numbers, positions, cell = (arrays[f"structs/{name}/{field}"] for field in ("numbers", "positions", "cell"))
    return Structure(numbers, positions, cell, np.ones(3, dtype=bool))


def graph_of(model, arrays, *names):
    return build_graph([structure(arrays, name) for name in names], model.config.cutoff, model.config.near_cutoff)


def near(found, expected):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_a_structure_alone(model, flavour, arrays, name):
    graph = graph_of(model, arrays, name)
    found = model(graph, ("energy", "forces", "stress", "magmoms")).detach()
    expected = {key: arrays[f"{flavour}/out/{name}/{key}"] for key in ("e_per_atom", "forces", "stress_GPa", "magmom")}
    assert [graph.edges, graph.near.pairs] == arrays[f"{flavour}/out/{name}/n_directed_edges_angles"].tolist()
    near(found.energy[0] / graph.atoms, expected["e_per_atom"])
    near(graph.in_input_order(found.forces), expected["forces"])
    near(found.stress[0], expected["stress_GPa"] / GPA)
    near(graph.in_input_order(found.magmoms), expected["magmom"])


def test_all_structures_in_one_batch_also_the_one_without_angles(model, flavour, arrays):
    names = [str(name) for name in arrays[f"{flavour}/batch/order"]]
    graph = graph_of(model, arrays, *names)
    found = model(graph, ("energy", "forces")).detach()
    sizes = np.array([len(structure(arrays, name)) for name in names])
    forces = np.split(np.asarray(graph.in_input_order(found.forces)), np.cumsum(sizes)[:-1])
    near(found.energy / torch.from_numpy(sizes), arrays[f"{flavour}/batch/e_per_atom"])
    for name, force in zip(names, forces, strict=True):
        alone = arrays[f"{flavour}/out/{name}/forces"]
        near(force, arrays[f"{flavour}/batch/forces_noangle"] if name == "noangle" else alone)
    without_angles = names.index("noangle")
    alone = arrays[f"{flavour}/out/noangle/e_per_atom"]
    assert abs(arrays[f"{flavour}/batch/e_per_atom"][without_angles] - alone) > 1e-3


@pytest.mark.parametrize("recompute_above", [10**9, 0], ids=["kept", "computed again"])
def test_gradients_of_a_loss_of_forces_and_stress(model, flavour, arrays, recompute_above, monkeypatch):
    monkeypatch.setattr(model, "recompute_above", recompute_above)
    model.zero_grad()
    found = model(graph_of(model, arrays, "ethanol"), ("energy", "forces", "stress", "magmoms"))
    loss = found.energy[0] + 100 * found.forces.square().sum() + 100 * (GPA * found.stress).square().sum()
    loss = loss + found.magmoms.sum()
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays[f"{flavour}/train/loss"]), rel=TOLERANCE)
    expected = {key.split("/")[-1]: norm for key, norm in arrays.items() if key.startswith(f"{flavour}/train/gradnorm")}
    assert set(expected) == {name for name, _ in model.named_parameters()}  # of frozen reference energies it is zero
    for name, norm in expected.items():
        gradient = model.get_parameter(name).grad
        found_norm = 0.0 if gradient is None else gradient.norm().item()
        assert found_norm == pytest.approx(float(norm), rel=TOLERANCE), name


@pytest.mark.parametrize(
    ("preset", "listing"), [("matris-6m", "code_default_6layer"), ("matris-10m", "published_10M_inferred")]
)
def test_weights_have_the_official_names_and_shapes(preset, listing):
    expected = json.loads((FILES / "state_dict_keys.json").read_text())[listing]
    with torch.device("meta"):
        state = MatRIS.from_preset(preset).state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == expected
