"""What happens to trained weights before the first step: parts are frozen, references are moved."""

import numpy as np
import pytest
import torch
from torch import nn

from janus_graph import Structure
from janus_train.config import ReferencesConfig, TaskReferences
from janus_train.data.frame import Frame
from janus_train.data.statistics import Given, fit_statistics
from janus_train.failure import UserError
from janus_train.parameter_names import matches
from janus_train.start import corrected_references, freeze, tasks_to_correct


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("blocks.0", "blocks.0.query.weight", True),
        ("blocks.0", "blocks.01.query.weight", False),
        ("blocks.0", "other.blocks.0", True),
        ("query", "blocks.0.query.weight", True),
        ("quer", "blocks.0.query.weight", False),
        ("*embedding", "atom_embedding.element", True),
        ("blocks.?.query", "blocks.7.query.weight", True),
        ("*", "bias", True),
        ("a.b.c", "a.b", False),
    ],
)
def test_a_pattern_is_a_run_of_whole_parts_of_a_name(pattern: str, name: str, expected: bool):
    assert matches(pattern, name) is expected


@pytest.mark.parametrize(("patterns", "left"), [([], 4), (["0"], 2), (["0", "bias"], 1)])
def test_what_is_frozen_asks_for_no_gradient(patterns: list[str], left: int):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    freeze(model, patterns)
    assert sum(parameter.requires_grad for parameter in model.parameters()) == left


def test_patterns_that_freeze_nothing_or_everything_are_refused():
    model = nn.ModuleDict({"embedding": nn.Linear(2, 2), "readout": nn.Linear(2, 1)})
    with pytest.raises(UserError, match=r"start\.freeze: no parameter has 'embeding' in its name.*embedding"):
        freeze(model, ["readout", "embeding"])
    with pytest.raises(UserError, match="leave nothing to train"):
        freeze(model, ["*"])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ReferencesConfig(), ["new"]),
        (ReferencesConfig(energies="fit"), ["new"]),
        (ReferencesConfig(energies={"H": 1.0}), []),
        (ReferencesConfig(energies="atoms", tasks={"old": TaskReferences(energies="fit")}), ["old"]),
        (ReferencesConfig(tasks={"new": TaskReferences(energies={"H": 1.0}), "old": TaskReferences(scale=2)}), []),
    ],
)
def test_references_that_the_user_gives_or_the_old_model_has_are_left_alone(config, expected: list[str]):
    given = {"old": Given({1: -1.0}, 1.0, "", kept=True), "new": Given({1: -1.0}, 1.0, "", kept=False)}
    assert tasks_to_correct(["old", "new"], given, config) == expected


def frame(numbers: list[int], energy: float) -> Frame:
    places = np.arange(3.0 * len(numbers)).reshape(-1, 3)
    return Frame(Structure(np.array(numbers), places, np.zeros((3, 3)), np.zeros(3, bool)), "a", energy=energy)


@pytest.mark.parametrize("fixed", [True, False])
def test_references_move_by_what_makes_the_starting_weights_best(fixed: bool):
    rng = np.random.default_rng(0)
    compositions = [[1, 1], [8, 8], [8, 1, 1]] if fixed else [[8, 1, 1]] * 3
    network, noise = rng.normal(size=3), rng.normal(size=3) * 0.01
    moves = {1: -3.0, 8: 40.0}
    old = {1: -13.0, 8: -430.0}
    said = [sum(old[z] for z in numbers) + off for numbers, off in zip(compositions, network, strict=True)]
    frames = [
        frame(numbers, value + sum(moves[z] for z in numbers) + off)
        for numbers, value, off in zip(compositions, said, noise, strict=True)
    ]
    given = {"a": Given(old, 1.0, "old", kept=False)}
    statistics = fit_statistics(frames, ["a"], None, given)
    assert statistics.references[0, [1, 8]].tolist() == [-13.0, -430.0]
    moved = corrected_references(statistics, ["a"], ["a"], frames, lambda some: np.array(said))
    sums = [sum(moved.references[0, z] - old[z] for z in numbers) for numbers in compositions]
    assert sums == pytest.approx([sum(moves[z] for z in numbers) for numbers in compositions], abs=0.05)
    assert moved.residuals[0] < 0.02
    assert ("fix 1 of 2 moves" in "".join(moved.warnings)) is not fixed
    if not fixed:  # no element moves more than the other
        assert moved.references[0, 1] - old[1] == pytest.approx(moved.references[0, 8] - old[8])
    assert corrected_references(statistics, ["a"], [], frames, lambda some: 1 / 0).references is not None


def test_energies_stay_in_double_precision_until_the_reference_is_off():
    from janus_train.data.batch import FrameSource
    from janus_train.loss import loss_errors
    from matris_model import MatRISMoE

    model = MatRISMoE.from_preset("nano", blocks=1, width=16, edge_width=8, heads=2, cutoff=4.0, near_cutoff=3.0)
    assert model.dtype == torch.float32
    errors = []
    for heavy in (0.0, -81_234.567_891_234):
        model.references[0, 26] = heavy
        frames = [frame([26] * 50, 50 * heavy + 0.125)]
        batch = FrameSource(frames, 4.0, 3.0).batch([0])
        with torch.no_grad():
            errors.append(float(loss_errors(model(batch.graph, ("energy",)), batch)["energy"]))
    # In single precision four million eV are known to 0.25 eV.
    assert errors[0] == pytest.approx(errors[1], abs=1e-9)
