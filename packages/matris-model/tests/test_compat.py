"""The published architecture, checked without official files: sizes, names, equations, errors."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import spherical_jn

from compat_cases import FLAVOURS, TINY_FOURIER, TINY_SH, as_checkpoint, stirred_compat
from compat_oracle import Naive
from janus_graph import build_graph
from matris_model import MatRISCalculator, load_model, save_model
from matris_model.compat import PRESETS, MatRIS, MatRISConfig, preset_config
from matris_model.compat.basis import _PUBLISHED, _radial_constants, envelope
from matris_model.compat.layers import softmax_sums
from matris_model.compat.plan import make_plan
from model_cases import EVERYWHERE, TINY, molecule, random_structure, stirred, structures

PROPERTIES = ("energy", "forces", "stress", "magmoms")
flavours = pytest.mark.parametrize("config", FLAVOURS.values(), ids=FLAVOURS.keys())


def graph_of(*batch, config=TINY_SH):
    return build_graph(batch, config.cutoff, config.near_cutoff)


# Sizes and names.


@pytest.mark.parametrize(
    ("preset", "parameters", "tensors"), [("matris-6m", 6_286_736, 515), ("matris-10m", 10_443_505, 967)]
)
def test_presets_have_the_published_number_of_parameters_and_tensors(preset, parameters, tensors):
    with torch.device("meta"):
        model = MatRIS.from_preset(preset)
    state = model.state_dict()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(state) == tensors
    assert all(tensor.is_meta for tensor in state.values())
    block = "interaction_block.5.refine_block_line_graph"
    assert state[f"{block}.edge_nonlinear_update.mlp_gate.layers.0.weight"].shape == (128, 512)
    assert state[f"{block}.learnable_envelope.weight"].shape == (128, 7)
    assert state["interaction_block.0.attn_block_atom_graph.node_res_weight"].shape == (1, 128)
    assert state["magmom_head.magmom_head.layers.3.weight"].shape == (1, 256)
    assert (f"{block}.edge_nonlinear_update.core_norm.bias" in state) == (preset == "matris-10m")
    assert ("reference_energy.fc.weight" in state) == (preset == "matris-10m")
    assert ("three_body_embedding.expansion.factor" in state) == (preset == "matris-6m")


def test_the_defaults_are_those_of_the_published_constructor():
    assert MatRISConfig() == PRESETS["matris-6m"]
    assert len(MatRISConfig().to_reference()) == 24
    with pytest.raises(ValueError, match="no preset 'matris'; there are matris-6m, matris-10m"):
        preset_config("matris")


@pytest.mark.parametrize(
    ("change", "present"),
    [
        ({"graph_conv_mlp": "MLP"}, "attn_block_atom_graph.edge_nonlinear_update.0.layers.3.weight"),
        ({"graph_conv_mlp": "MLP"}, "refine_block_line_graph.edge_nonlinear_update.1.weight"),
        ({"use_bias": True}, "refine_block_atom_graph.node_FFN.layers.3.bias"),
        ({"norm_type": "batch"}, "attn_block_line_graph.node_nonlinear_update.gate_norm.running_mean"),
    ],
    ids=str,
)
def test_other_options_have_other_weights_and_work(change, present):
    model = stirred_compat(TINY_SH.replace(**change))
    assert f"interaction_block.1.{present}" in model.state_dict()
    assert f"interaction_block.1.{present}" not in MatRIS(TINY_SH).state_dict()
    found = model(graph_of(molecule([8, 1, 1], [[0, 0, 0], [0, 0, 1], [0, 1, 0.2]])), PROPERTIES)
    assert found.forces.isfinite().all()
    assert found.forces.abs().max() > 1e-6


@pytest.mark.parametrize("learnable", [True, False])
@flavours
def test_frequencies_are_parameters_where_they_are_to_be_learned(config, learnable):
    model = MatRIS(config.replace(learnable_basis=learnable))
    names = {name for name in model.state_dict() if name.endswith("frequencies")}
    assert len(names) == (3 if config.three_body_expansion == "fourier" else 2)
    assert names.isdisjoint(dict(model.named_parameters())) != learnable


def test_dropout_acts_in_training_and_nowhere_else():
    graph = graph_of(molecule([8, 1, 1], [[0, 0, 0], [0, 0, 1], [0, 1, 0.2]]))
    model = stirred_compat(TINY_SH.replace(dropout=0.5))
    plain = stirred_compat(TINY_SH)
    assert torch.equal(model(graph).energy, plain(graph).energy)
    torch.manual_seed(0)
    assert not torch.equal(model.train()(graph).energy, plain.train()(graph).energy)


# Equations.


NAIVE = {
    "molecule": molecule([8, 1, 6], [[0, 0, 0.1], [0.9, 0.2, 0], [-0.4, 1.2, 0.3]]),
    "no angle": molecule([8, 26], [[0, 0, 0], [0, 1.1, 3.2]]),
    "one atom and its images": random_structure(1, 1, (1, 1, 2), (True, False, True), skewed=True),
}


@pytest.mark.parametrize("structure", NAIVE.values(), ids=NAIVE.keys())
@flavours
def test_energies_are_those_of_the_equations(config, structure):
    model = stirred_compat(config)
    graph = graph_of(structure, config=config)
    references = float(model.references[0, structure.atomic_numbers].sum())
    found = float(model(graph, ("energy",)).energy.detach()[0]) - references
    # Reference energies per atom are rounded to single precision, as published.
    rounding = len(structure) * torch.finfo(torch.float32).eps * (1 + abs(references))
    assert found == pytest.approx(Naive(model, graph).energy(), abs=1e-11 + rounding * bool(references))


def test_constants_of_the_angles_are_the_formula_with_published_rounding():
    for cutoff in (4.0, 6.0):
        found = np.array(_radial_constants(cutoff))
        for order in range(4):
            zeros = list(refined_zeros(order))[:4]
            expected = [
                math.sqrt(2 / cutoff**3) * spherical_jn(order, z / cutoff) / abs(spherical_jn(order + 1, z))
                for z in zeros
            ]
            np.testing.assert_allclose(found[order], expected, rtol=1e-9)
    np.testing.assert_allclose(np.array(_PUBLISHED), np.array(_radial_constants(6.0)), rtol=2e-5)


def refined_zeros(order):
    """Positive zeros of j_order by scanning for changes of sign and halving."""
    grid = np.linspace(0.5, 20, 4000)
    values = spherical_jn(order, grid)
    for place in np.flatnonzero(np.sign(values[:-1]) != np.sign(values[1:])):
        low, high = grid[place], grid[place + 1]
        for _ in range(60):
            middle = (low + high) / 2
            same = np.sign(spherical_jn(order, middle)) == np.sign(spherical_jn(order, low))
            low, high = (middle, high) if same else (low, middle)
        yield low


@pytest.mark.parametrize("exponent", [1, 5, 8])
def test_the_envelope_is_the_published_polynomial_and_ends_smoothly(exponent):
    p, x = exponent, torch.linspace(0, 0.999, 50, dtype=torch.float64)
    expected = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    torch.testing.assert_close(envelope(x, p), expected, rtol=0, atol=1e-13)
    edge = torch.tensor([1 - 1e-5, 1.0, 1.5], dtype=torch.float64)
    assert envelope(edge, p)[0] < p**3 * 1e-15
    assert envelope(edge, p)[1:].tolist() == [0.0, 0.0]


@given(st.lists(st.integers(0, 4), max_size=12), st.integers(0, 1000))
def test_softmax_sums_are_those_of_a_loop_over_segments(segment, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, values = 300 * torch.randn(2, len(segment), 3, generator=generator, dtype=torch.float64)
    found = softmax_sums(logits, values, torch.tensor(segment, dtype=torch.int64), 5)
    for place in range(5):
        mine = [row for row, owner in enumerate(segment) if owner == place]
        expected = (torch.softmax(logits[mine], dim=0) * values[mine]).sum(dim=0)
        torch.testing.assert_close(found[place], expected)


# Plans.


@given(st.lists(structures, min_size=1, max_size=3))
def test_every_bond_is_an_edge_and_its_reverse_and_every_angle_finds_its_edges(batch):
    graph = graph_of(*batch)
    edges = list(zip(*graph.edge_index.tolist(), map(tuple, graph.edge_shifts.tolist()), strict=True))
    plan = make_plan(graph)
    assert len(plan.first) * 2 == len(edges)
    for edge, back in zip(plan.first.tolist(), plan.second.tolist(), strict=True):
        i, j, shift = edges[edge]
        assert edges[back] == (j, i, tuple(-x for x in shift))
    assert plan.bond_of_edge[plan.first].tolist() == plan.bond_of_edge[plan.second].tolist()
    assert plan.bond_of_edge[plan.first].tolist() == list(range(len(plan.first)))
    assert plan.angle_edges.shape[1] == graph.near.pairs
    for centre, p, q in zip(plan.angle_centre.tolist(), *plan.angle_edges.tolist(), strict=True):
        assert edges[p][0] == edges[q][0] == centre


def test_a_part_of_a_structure_is_refused():
    graph = graph_of(molecule([8, 1], [[0, 0, 0], [0, 0, 1]]))
    part = graph.replace(edge_index=graph.edge_index[:, :1], edge_shifts=graph.edge_shifts[:1])
    with pytest.raises(ValueError, match="give it whole structures"):
        make_plan(part)


# Checkpoints.


@flavours
def test_a_checkpoint_gives_back_the_model(config, tmp_path):
    model = stirred_compat(config)
    again = MatRIS.from_reference(as_checkpoint(model))
    assert again.config == config
    assert not again.training
    torch.save(as_checkpoint(model), tmp_path / "weights.pth.tar")
    opened = MatRIS.from_file(tmp_path / "weights.pth.tar")
    graph = graph_of(random_structure(2, 3, (2, 2, 1), EVERYWHERE), config=config)
    expected = model(graph, PROPERTIES)
    for found in (again(graph, PROPERTIES), opened(graph, PROPERTIES)):
        assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in PROPERTIES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_precision_is_that_of_the_weights(dtype):
    assert MatRIS.from_reference(as_checkpoint(stirred_compat().to(dtype))).dtype == dtype


def broken(change):
    checkpoint = as_checkpoint(stirred_compat())
    checkpoint["state_dict"] = dict(checkpoint["state_dict"])
    return change(checkpoint) or checkpoint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [c], r"this is list; a published checkpoint is a dictionary of 'config'"),
        (lambda c: {"model": c}, r"there is no 'config' here, but model"),
        (lambda c: c.pop("state_dict") and None, r"there is no 'state_dict' here, but config"),
        (lambda c: c["config"].pop("num_layers") and None, r"the configuration lacks num_layers; .* all 24"),
        (lambda c: c["config"].update(num_layer=2), r"unknown configuration field 'num_layer'; .* 'num_layers'"),
        (lambda c: c["config"].update(tasks=("a",)), r"unknown configuration field 'tasks'"),
        (lambda c: c["config"].update(is_conservation=False), r"is_conservation = False is not supported"),
        (lambda c: c["config"].update(is_intensive=False), r"is_intensive = False is not supported"),
        (lambda c: c["config"].update(graph_conv_mlp="MoE"), r"graph_conv_mlp = 'moe' is not supported \(.*stub"),
        (lambda c: c["config"].update(distance_expansion="gaussian"), r"distance_expansion = 'gaussian' is not"),
        (lambda c: c["config"].update(activation_type="gelu"), r"activation_type = 'gelu' is not supported"),
        (lambda c: c["config"].update(num_angular=7), r"num_angular = 7 must equal num_radial = 5"),
        (lambda c: c["config"].update(num_angular=4, num_radial=4), r"num_angular = 4 must be odd"),
        (lambda c: c["config"].update(max_l=5), r"max_l = 5 and max_n = 4 must be at most 4"),
        (lambda c: c["config"].update(three_body_cutoff=7), r"three_body_cutoff = 7.0 Å must be at most"),
        (lambda c: c["config"].update(num_layers="six"), r"num_layers is 'six'; it must be a whole number"),
        (lambda c: c["config"].update(dropout=1.5), r"dropout is 1.5; it must be a fraction"),
        (lambda c: c["config"].update(mlp_hidden_dims=5), r"mlp_hidden_dims is 5; it must be a sequence"),
        (lambda c: c["config"].update(reference_energy=None), r"1 tensors are unknown: reference_energy.fc.weight"),
        (lambda c: c["config"].update(num_layers=3), r"94 tensors are missing: interaction_block.2.* and 90 more"),
        (lambda c: c["config"].update(node_feat_dim=11), r"tensors have another shape: .* is \[94, 10\], expected"),
        (lambda c: c["state_dict"].update(extra=torch.ones(1)), r"1 tensors are unknown: extra"),
        (lambda c: c["state_dict"].update({"readout_norm.weight": 1.0}), r"no tensors: readout_norm.weight"),
        (lambda c: c.update(state_dict={k: v.int() for k, v in c["state_dict"].items()}), r"weights are torch.int32"),
    ],
)  # fmt: skip
def test_what_is_no_published_checkpoint_is_refused_with_the_reason(change, message):
    with pytest.raises(ValueError, match=message):
        MatRIS.from_reference(broken(change))


class WritesAFile:
    """Runs code where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_opening_a_file_runs_no_code(tmp_path):
    proof = tmp_path / "proof"
    checkpoint = as_checkpoint(stirred_compat()) | {"more": WritesAFile(proof)}
    torch.save(checkpoint, tmp_path / "bad.pth.tar")
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(WritesAFile(proof), protocol=2))
    for name in ("bad.pth.tar", "bare.pkl"):
        with pytest.raises(ValueError, match=rf"{name}: .*could run code"):
            MatRIS.from_file(tmp_path / name)
    assert not proof.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"a poem", None], ids=["empty", "cut", "text", "missing"])
def test_files_of_another_kind_are_refused_by_name(tmp_path, content):
    path = tmp_path / "weights.pth.tar"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth\.tar: (is damaged|cannot be read)"):
        MatRIS.from_file(path)


# Model files, calculator, elements, tasks.


@flavours
def test_a_model_file_gives_back_either_kind_of_model(config, tmp_path):
    model = stirred_compat(config.replace(elements=(8, 1), tasks=("mine",)))
    loaded = load_model(save_model(model, tmp_path / "compat"))
    assert isinstance(loaded, MatRIS)
    assert loaded.config == model.config
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert type(load_model(save_model(stirred(), tmp_path / "moe"))) is type(stirred())


def test_model_files_without_a_kind_still_open_and_unknown_kinds_are_refused(tmp_path):
    import json

    directory = save_model(stirred(), tmp_path)
    meaning = json.loads((directory / "model.json").read_text())
    assert meaning.pop("kind") == "MatRISMoE"
    (directory / "model.json").write_text(json.dumps(meaning))
    assert load_model(directory).config == TINY
    (directory / "model.json").write_text(json.dumps(meaning | {"kind": "Other"}))
    with pytest.raises(ValueError, match="kind is 'Other'; this program knows MatRISMoE and MatRIS"):
        load_model(directory)


def test_the_calculator_says_what_the_model_says(tmp_path):
    from ase.build import bulk

    from janus_graph.ase import structure_from_ase

    model = stirred_compat()
    atoms = bulk("NaCl", "rocksalt", a=5.3)
    atoms.rattle(0.1, seed=0)
    graph = graph_of(structure_from_ase(atoms))
    expected = model(graph, PROPERTIES).detach()
    for given_model in (model, save_model(model, tmp_path)):
        atoms.calc = MatRISCalculator(given_model)
        assert atoms.get_potential_energy() == pytest.approx(float(expected.energy[0]), abs=1e-12)
        np.testing.assert_allclose(atoms.get_forces(), graph.in_input_order(expected.forces), rtol=0, atol=1e-12)
        np.testing.assert_allclose(atoms.get_stress(voigt=False), expected.stress[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            atoms.get_magnetic_moments(), graph.in_input_order(expected.magmoms), rtol=0, atol=1e-12
        )
    assert all(parameter.grad is None for parameter in model.parameters())


def test_elements_and_tasks_that_are_not_there_are_refused():
    model = stirred_compat(TINY_SH.replace(elements=(1, 8)))
    model.check_elements([1, 8])
    with pytest.raises(ValueError, match="has not seen C in training; it knows H, O"):
        model.check_elements([1, 6])
    with pytest.raises(ValueError, match="has not seen Am in training; its elements end at Pu"):
        model(graph_of(molecule([94, 95], [[0, 0, 0], [0, 0, 2]])))
    assert model(graph_of(molecule([1, 94], [[0, 0, 0], [0, 0, 2]])), ("energy",)).energy.isfinite().all()
    assert model.task_index(None) == model.task_index("default") == 0
    with pytest.raises(ValueError, match="no task 'other'; it has one, default"):
        model.task_index("other")
    with pytest.raises(ValueError, match="so one task"):
        MatRISConfig(tasks=("a", "b"))
    with pytest.raises(ValueError, match="must lie between 1 and 94"):
        MatRISConfig(elements=(1, 95))


def test_a_graph_with_other_cutoffs_is_refused():
    with pytest.raises(ValueError, match=r"4\.0 and 2\.5 Å, the model needs 4\.0 and 3\.0 Å"):
        stirred_compat()(build_graph([NAIVE["molecule"]], 4.0, 2.5))


def test_reference_energies_are_added_for_every_atom_and_never_trained():
    structure = NAIVE["molecule"]
    model = stirred_compat(TINY_FOURIER)
    without = MatRIS(TINY_FOURIER.replace(reference_energy=None)).double()
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("reference_energy")}
    without.load_state_dict(state)
    graph = graph_of(structure)
    difference = model(graph).energy - without(graph).energy
    expected = model.state_dict()["reference_energy.fc.weight"][0, structure.atomic_numbers - 1].sum()
    assert float(difference.detach()[0]) == pytest.approx(float(expected), abs=1e-6)
    assert not model.get_parameter("reference_energy.fc.weight").requires_grad
    assert not without.references.any()
