"""What can be asked of the model, what it refuses, and that its weights depend on the seed alone."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_graph import Structure, build_graph
from janus_moe import initial_selection
from matris_model import MatRISMoE, MatRISMoEConfig, preset_config
from matris_model.elements import CHEMICAL_SYMBOLS
from model_cases import EVERYWHERE, TINY, molecule, random_structure, stirred, structures

PROPERTIES = ("energy", "forces", "stress", "magmoms")
MODEL = stirred()


def graph_of(*batch):
    return build_graph(batch, TINY.cutoff, TINY.near_cutoff)


CRYSTAL = random_structure(2, 3, (2, 2, 1), EVERYWHERE)
WATER = molecule([8, 1, 1], [[0, 0, 0.12], [0, 0.76, -0.47], [0, -0.76, -0.47]])


@pytest.mark.parametrize(
    "wanted", [c for n in range(5) for c in itertools.combinations(PROPERTIES, n)], ids=lambda c: "+".join(c) or "none"
)
@pytest.mark.parametrize("gradients", [True, False], ids=["with gradients", "without"])
def test_any_subset_of_properties_has_the_values_of_all_together(wanted, gradients):
    graph = graph_of(CRYSTAL, WATER)
    everything = MODEL(graph, PROPERTIES)
    with torch.set_grad_enabled(gradients):
        found = MODEL(graph, wanted)
    for name in PROPERTIES:
        value = getattr(found, name)
        if name in wanted or name == "energy":
            assert value.requires_grad == gradients
            torch.testing.assert_close(value, getattr(everything, name), rtol=1e-12, atol=1e-12)
        else:
            assert value is None


@given(st.lists(structures, min_size=1, max_size=3))
def test_shapes_dtypes_and_signs_of_properties(batch):
    graph = graph_of(*batch)
    with torch.no_grad():
        found = MODEL(graph, PROPERTIES)
    assert found.energy.shape == (len(batch),)
    assert found.forces.shape == (graph.atoms, 3)
    assert found.stress.shape == (len(batch), 3, 3)
    assert found.magmoms.shape == (graph.atoms,)
    assert bool((found.magmoms > 0).all())
    assert all(bool(torch.isfinite(getattr(found, name)).all()) for name in PROPERTIES)
    torch.testing.assert_close(found.stress, found.stress.transpose(1, 2), rtol=1e-12, atol=1e-12)
    for total in torch.zeros(len(batch), 3, dtype=torch.float64).index_add(0, graph.structure_index, found.forces):
        assert float(total.abs().max()) < 1e-9 * (1 + float(found.forces.abs().max()))


def test_without_the_head_there_are_no_magnetic_moments():
    model = MatRISMoE(TINY.replace(magnetic_moments=False))
    with pytest.raises(ValueError, match="no magnetic moments"):
        model(graph_of(WATER), ("energy", "magmoms"))
    assert not any("magmom" in name for name in model.state_dict())


def test_magnetic_moments_belong_to_their_atoms():
    graph = graph_of(WATER, dataclasses.replace(WATER, spin=3))
    moments = graph.in_input_order(MODEL(graph, ("magmoms",)).magmoms.detach())
    torch.testing.assert_close(moments[1], moments[2], rtol=1e-12, atol=1e-12)
    assert float((moments[0] - moments[1]).abs()) > 1e-6
    assert float((moments[0] - moments[3]).abs()) > 1e-6


def test_one_atom_has_an_energy_and_no_force():
    for z in (1, 26, 118):
        found = MODEL(graph_of(molecule([z], [[3.0, 4.0, 5.0]])), ("energy", "forces", "stress"))
        assert math.isfinite(float(found.energy.detach()))
        assert not found.forces.any()
        assert not found.stress.any()


def test_atoms_out_of_reach_feel_nothing():
    found = MODEL(graph_of(molecule([8, 8], [[0, 0, 0], [TINY.cutoff, 0, 0]])), ("energy", "forces"))
    assert not found.forces.any()


def test_all_elements_in_one_structure_give_finite_values():
    places = np.array(list(np.ndindex(5, 5, 5)))[:118] * 2.2
    found = MODEL(graph_of(molecule(np.arange(1, 119), places)), ("energy", "forces"))
    assert bool(torch.isfinite(found.forces).all())
    assert len(CHEMICAL_SYMBOLS) == 119


@pytest.mark.parametrize("label", ["charge", "spin", "task"])
def test_charge_spin_and_task_change_the_energy(label):
    variants = [dataclasses.replace(WATER, **{label: value}) for value in ((0, 1, -1) if label == "charge" else (1, 2))]
    if label == "task":
        variants = [dataclasses.replace(WATER, task=task) for task in (0, 1)]
    energies = MODEL(graph_of(*variants), ("energy",)).energy.detach().tolist()
    assert all(abs(a - b) > 1e-6 for a, b in itertools.combinations(energies, 2))


def test_the_energy_of_a_task_is_its_scale_times_the_network_plus_its_references():
    model = stirred()
    graph = graph_of(dataclasses.replace(WATER, task=1))
    before = float(model(graph, ("energy",)).energy.detach())
    references = float(model.references[1, 8] + 2 * model.references[1, 1])
    model.scales[1] *= 3.0
    model.scales[0] *= 7.0
    model.references[0] += 100.0
    after = float(model(graph, ("energy",)).energy.detach())
    assert after - references == pytest.approx(3 * (before - references), rel=1e-12)


def test_elements_that_were_not_in_training_are_named():
    model = MatRISMoE(TINY.replace(elements=(8, 1)))
    model.check_elements([1, 8])
    with pytest.raises(ValueError, match=r"not seen C, Og in training; it knows H, O"):
        model.check_elements([6, 1, 118])
    MatRISMoE(TINY).check_elements(range(1, 119))


def test_tasks_are_found_by_name():
    assert [MODEL.task_index(name) for name in TINY.tasks] == [0, 1]
    assert MatRISMoE(TINY.replace(tasks=("only",))).task_index(None) == 0
    with pytest.raises(ValueError, match="several tasks; choose task= one of left, right"):
        MODEL.task_index(None)
    with pytest.raises(ValueError, match="no task 'up'; choose task= one of left, right"):
        MODEL.task_index("up")


def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_state_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, again = MatRISMoE.from_preset("nano", seed=3), MatRISMoE.from_preset("nano", seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    elsewhere, other = MatRISMoE.from_preset("nano", seed=3), MatRISMoE.from_preset("nano", seed=4)
    state = first.state_dict()
    for same in (again, elsewhere):
        assert all(torch.equal(state[name], value) for name, value in same.state_dict().items())
    random = [name for name, p in first.named_parameters() if p.detach().std() > 0 and "router" not in name]
    assert len(random) > 10
    assert not any(torch.equal(state[name], other.state_dict()[name]) for name in random)


def test_experts_are_dealt_out_by_the_atoms_of_the_data_in_every_layer():
    atoms = torch.arange(119) % 7
    made, reset = MatRISMoE(TINY, frequencies=atoms), MatRISMoE(TINY)
    reset.reset_parameters(0, atoms)
    expected = initial_selection(TINY.experts, TINY.top_k, atoms)
    assert not torch.equal(expected, initial_selection(TINY.experts, TINY.top_k))
    for model in (made, reset):
        for block in model.blocks:
            assert torch.equal(block.message_experts.router.selection, expected)
            assert torch.equal(block.feature_experts.router.selection, expected)


def test_from_preset_takes_changes_of_fields():
    model = MatRISMoE.from_preset("nano", cutoff=5.0, tasks=("a", "b"))
    assert model.config == preset_config("nano").replace(cutoff=5.0, tasks=("a", "b"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_change_of_dtype_changes_weights_and_leaves_reference_energies(dtype):
    model = stirred()
    references = model.references.clone()
    model.to(dtype)
    assert model.dtype == dtype
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.references.dtype == model.scales.dtype == torch.float64
    assert torch.equal(model.references, references)


def test_float32_agrees_with_float64_to_its_precision():
    graph = graph_of(CRYSTAL, WATER)
    exact = stirred()(graph, PROPERTIES).detach()
    rough = stirred().float()(graph, PROPERTIES).detach()
    assert rough.energy.dtype == rough.forces.dtype == rough.stress.dtype == torch.float64
    for name in PROPERTIES:
        a, b = getattr(rough, name).double(), getattr(exact, name)
        scale = 1 + float(b.abs().max())
        torch.testing.assert_close(a, b, rtol=0, atol=3000 * torch.finfo(torch.float32).eps * scale)
    assert not torch.equal(rough.forces, exact.forces)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": 0}, "blocks is 0"),
        ({"heads": 3}, "heads = 3 must divide"),
        ({"top_k": 5}, "top_k = 5 of experts = 4"),
        ({"near_cutoff": 5.0}, "near_cutoff = 5.0"),
        ({"near_cutoff": 0.0}, "near_cutoff = 0.0"),
        ({"tasks": ()}, "at least one task"),
        ({"tasks": ("a", "a")}, "each once"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TINY.replace(**changes)


def test_configurations_survive_a_dictionary():
    assert MatRISMoEConfig.from_dict(TINY.to_dict()) == TINY
    with pytest.raises(ValueError, match="unknown configuration fields \\['depth'\\]"):
        MatRISMoEConfig.from_dict({**TINY.to_dict(), "depth": 3})


def test_unknown_presets_are_refused_and_the_known_named():
    with pytest.raises(ValueError, match="no preset 'XL'; there are nano, micro"):
        preset_config("XL")


def test_experts_that_no_element_of_the_batch_selects_get_exactly_zero_gradient():
    graph = graph_of(WATER)
    loss = MODEL(graph, ("energy", "forces")).forces.square().sum()
    for block in MODEL.blocks:
        for layer in (block.message_experts, block.feature_experts):
            used = set(layer.router.selection[[1, 8]].flatten().tolist())
            idle = [expert for expert in range(TINY.experts) if expert not in used]
            (gradient,) = torch.autograd.grad(loss, [layer.experts.down], retain_graph=True, materialize_grads=True)
            assert not gradient[idle].any()


def test_structures_of_the_same_atoms_in_a_box_and_in_none_are_the_same():
    boxed = Structure(WATER.atomic_numbers, WATER.positions, 30 * np.eye(3), np.array(EVERYWHERE))
    found = MODEL(graph_of(WATER, boxed), ("energy",)).energy.detach()
    assert float(found[0]) == pytest.approx(float(found[1]), abs=1e-11)
