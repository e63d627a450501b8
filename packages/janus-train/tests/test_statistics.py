import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_graph import Structure
from janus_train.data.frame import Frame
from janus_train.data.statistics import fit_statistics


def frame(numbers: list[int], energy: float | None, task: str = "a", force: float | None = None) -> Frame:
    count = len(numbers)
    structure = Structure(np.array(numbers), np.arange(3.0 * count).reshape(-1, 3), np.zeros((3, 3)), np.zeros(3, bool))
    return Frame(structure, task, energy=energy, forces=None if force is None else np.full((count, 3), force))


@given(st.floats(-5000, 5000), st.floats(-5000, 5000), st.floats(-5000, 5000))
def test_energies_that_are_sums_over_atoms_give_back_their_terms(hydrogen: float, carbon: float, oxygen: float):
    value = {1: hydrogen, 6: carbon, 8: oxygen}
    compositions = [[1, 1], [6, 8], [6, 1, 1, 1, 1], [8, 1, 1], [8, 8]]
    found = fit_statistics([frame(numbers, sum(value[z] for z in numbers)) for numbers in compositions], ["a"])
    for z, expected in value.items():
        assert found.references[0, z] == pytest.approx(expected, abs=1e-8)
    assert found.residuals[0] == pytest.approx(0, abs=1e-8)
    assert not found.warnings


def test_compositions_in_a_fixed_ratio_warn_and_still_add_up():
    found = fit_statistics([frame([8, 1, 1], -10.0), frame([8, 1, 1], -10.2)], ["a"])
    assert found.references[0, 8] + 2 * found.references[0, 1] == pytest.approx(-10.1)
    assert "1 of 2" in found.warnings[0]


def test_tasks_have_their_own_references_and_scales():
    frames = [frame([1, 1], -2.0, "a", 1.0), frame([1, 1], -4.0, "b", 3.0), frame([1], 0.0, "b", 0.0)]
    found = fit_statistics(frames, ["a", "b"])
    assert found.references[0, 1] == pytest.approx(-1.0)
    assert found.scales.tolist() == pytest.approx([1.0, 3.0])


def test_without_any_label_there_is_nothing_to_take_off():
    found = fit_statistics([frame([1, 8], None)], ["a"])
    assert not found.references.any()
    assert found.scales[0] > 0


@given(st.lists(st.lists(st.integers(1, 118), min_size=1, max_size=5), max_size=5))
def test_atoms_are_counted_by_element_over_all_tasks(compositions: list[list[int]]):
    frames = [frame(numbers, None, task="ab"[place % 2]) for place, numbers in enumerate(compositions)]
    found = fit_statistics(frames, ["a", "b"]).atoms
    every = [z for numbers in compositions for z in numbers]
    assert found.tolist() == [every.count(z) for z in range(119)]
