"""Models that go on from the weights of others."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from janus_graph import build_graph
from janus_moe import SwiGLU, SwiGLUExperts
from matris_model import (
    MatRISMoE,
    inherit_weights,
    is_matrix,
    is_table,
    load_model,
    nearest_element,
    save_model,
    saved_config,
)
from matris_model import stand_in as with_stand_ins
from matris_model.elements import CHEMICAL_SYMBOLS
from matris_model.golden import golden_structures
from matris_model.model_file import FORMAT, VERSION

SMALL = {
    "blocks": 2, "width": 16, "edge_width": 8, "heads": 2, "experts": 4, "expert_hidden": 8, "message_hidden": 8,
    "feature_hidden": 8, "structure_width": 4, "cutoff": 4.0, "near_cutoff": 3.0,
}  # fmt: skip


def old_model() -> MatRISMoE:
    model = MatRISMoE.from_preset("nano", 3, **SMALL, tasks=("a", "b"), elements=(8, 14, 25)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (model.references, model.scales):
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def grown() -> tuple[MatRISMoE, MatRISMoE]:
    """A trained model, and one with a task and two elements more that has inherited its weights block by block."""
    old = old_model()
    shape = old.config.replace(tasks=("a", "b", "new"), elements=(*old.config.elements, 16, 43))
    model = MatRISMoE(shape, seed=9).double()
    for module in (*model.blocks, model):
        inherit_weights(model, module, old.state_dict().get, {2: 1}, {16: 8, 43: 25})
    return old, model


def energies(model: MatRISMoE, structures):
    graph = build_graph(structures, model.config.cutoff, model.config.near_cutoff)
    return model(graph, ("energy", "forces"))


@pytest.mark.parametrize("task", [0, 1, 2])
def test_old_tasks_say_the_same_to_the_bit_and_a_new_one_says_what_it_begins_as(task: int, grown):
    old, model = grown
    structures = golden_structures(old)
    before = energies(old, [replace(one, task=min(task, 1)) for one in structures])
    after = energies(model, [replace(one, task=task) for one in structures])
    assert torch.equal(before.energy, after.energy)
    assert torch.equal(before.forces, after.forces)


def test_new_elements_are_those_they_stand_in_for(grown):
    old, model = grown
    expected = with_stand_ins(old, {16: 8, 43: 25})
    swap = {8: 16, 25: 43, 14: 14}
    structures = [
        replace(one, atomic_numbers=np.array([swap[z] for z in one.atomic_numbers.tolist()]))
        for one in golden_structures(old)
    ]
    assert torch.equal(energies(model, structures).energy, energies(expected, structures).energy)


def test_what_the_trained_model_lacks_stays_and_other_shapes_are_refused():
    old = old_model()
    model = MatRISMoE(old.config.replace(magnetic_moments=True), seed=1).double()
    head = model.magmom_out.weight.detach().clone()
    inherit_weights(model, model, old.state_dict().get, {}, {})
    assert torch.equal(model.magmom_out.weight, head)
    assert torch.equal(model.energy_out.weight, old.energy_out.weight)
    wide = MatRISMoE(old.config.replace(expert_hidden=16), seed=1)
    with pytest.raises(ValueError, match=r"blocks\.0.*has shape .* in the trained model"):
        inherit_weights(wide, wide.blocks[0], old.state_dict().get, {}, {})
    with pytest.raises(ValueError, match="Linear is no part of this model"):
        inherit_weights(wide, torch.nn.Linear(1, 1), old.state_dict().get, {}, {})


def test_tables_are_the_parameters_with_a_row_for_each_element_or_task():
    model = MatRISMoE.from_preset("nano", **SMALL, tasks=tuple("abcde"))
    rows = {name for name, parameter in model.named_parameters() if parameter.dim() == 2 and len(parameter) in (5, 119)}
    assert {name for name, _ in model.named_parameters() if is_table(name)} == rows


@pytest.mark.parametrize(
    ("element", "known", "expected"),
    [
        ("Tc", "Mo Mn Ru", "Mn"),
        ("Hf", "Zr Ta La", "Zr"),
        ("Ce", "La Y Hf", "La"),
        ("Lu", "La Yb Y", "Yb"),
        ("F", "O Cl Ne", "Cl"),
        ("H", "He Na O", "Na"),
        ("He", "H Ne", "Ne"),
        ("U", "Nd Th W", "Th"),
        ("Ga", "Zn Al Ge", "Al"),
        ("Og", "H", "H"),
    ],
)
def test_the_nearest_element_is_of_the_same_column_first(element: str, known: str, expected: str):
    number = CHEMICAL_SYMBOLS.index
    assert nearest_element(number(element), [number(symbol) for symbol in known.split()]) == number(expected)


def test_places_in_the_periodic_table_are_those_of_elements_that_belong_together():
    from matris_model.inheritance import _row_and_column

    columns = {
        1: "H Li Na K Rb Cs Fr", 2: "Be Mg Ca Sr Ba Ra", 4: "Ti Zr Hf Rf", 11: "Cu Ag Au Rg", 13: "B Al Ga In Tl Nh",
        17: "F Cl Br I At Ts", 18: "He Ne Ar Kr Xe Rn Og", 3: "Sc Y La Ce Eu Lu Ac U Lr",
    }  # fmt: skip
    for column, symbols in columns.items():
        assert {_row_and_column(CHEMICAL_SYMBOLS.index(symbol))[1] for symbol in symbols.split()} == {column}
    with pytest.raises(ValueError, match="no element is known that Fe could begin as"):
        nearest_element(26, [])


def test_the_configuration_of_a_saved_model_is_read_without_its_weights(tmp_path):
    model = old_model()
    save_model(model, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert saved_config(tmp_path) == model.config
    with pytest.raises(ValueError, match="checksums"):
        load_model(tmp_path)
    about = {"format": FORMAT, "version": VERSION, "config": {"blocks": 0}}
    (tmp_path / "model.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="damaged: blocks is 0"):
        saved_config(tmp_path)


@pytest.mark.parametrize("preset", ["nano", "S"])
def test_matrices_are_what_turns_features_into_features(preset: str):
    with torch.device("meta"):
        model = MatRISMoE.from_preset(preset, magnetic_moments=True)
    maps = {}
    for owner, module in model.named_modules():
        if isinstance(module, nn.Linear):
            maps[f"{owner}.weight"] = module
        elif isinstance(module, (SwiGLU, SwiGLUExperts)):
            maps |= {f"{owner}.gate_up": module, f"{owner}.down": module}
    basis = (model.config.radial_functions, 3)  # distances; charge and spin
    expected = {
        name
        for name, module in maps.items()
        if not isinstance(module, nn.Linear) or (module.in_features not in basis and module.out_features > 1)
    }
    found = {name for name, _ in model.named_parameters() if is_matrix(name)}
    assert found == expected | {"density.mix", "density.mix_of_three"}
