import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_strategies import structures
from janus_graph import Structure, structures_end_to_end

NOWHERE, EVERYWHERE = [False] * 3, [True] * 3


def structure(**changes):
    return Structure(
        **{
            "atomic_numbers": [1, 8],
            "positions": [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]],
            "cell": 3 * np.eye(3),
            "periodic": EVERYWHERE,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"atomic_numbers": [], "positions": np.zeros((0, 3))}, "no atoms"),
        ({"atomic_numbers": [1]}, r"positions have shape \(2, 3\) and atomic_numbers \(1,\)"),
        ({"positions": [[0.0, 0.0], [1.0, 0.0]]}, r"must be \[atoms, 3\]"),
        ({"atomic_numbers": [[1, 8]]}, r"atomic_numbers \(1, 2\)"),
        ({"atomic_numbers": [1, 0]}, "atom 1 has atomic number 0"),
        ({"atomic_numbers": [119, 1]}, "atom 0 has atomic number 119.*118"),
        ({"atomic_numbers": [1, -6]}, "atom 1 has atomic number -6"),
        ({"positions": [[0.0, 0.0, 0.0], [0.0, np.nan, 0.0]]}, "position of atom 1 .* must be finite"),
        ({"positions": [[np.inf, 0.0, 0.0], [0.0, 0.0, 0.0]]}, "position of atom 0 .* must be finite"),
        ({"spin": 0}, "spin is 0.*2S \\+ 1"),
        ({"cell": np.eye(2)}, r"cell has shape \(2, 2\)"),
        ({"periodic": [True]}, r"periodic \(1,\)"),
        ({"cell": np.diag([1.0, np.nan, 1.0])}, "cell has entries that are not finite"),
        ({"cell": np.zeros((3, 3))}, "no volume .* or set pbc to F F F"),
        ({"cell": np.diag([3.0, 3.0, 0.0])}, "no volume"),
        ({"cell": [[3.0, 0, 0], [0, 3.0, 0], [3.0, 3.0, 1e-9]]}, "no volume"),
        ({"cell": [[3.0, 0, 0], [6.0, 0, 0], [0, 0, 0]], "periodic": [True, True, False]}, "no volume"),
        ({"cell": np.zeros((3, 3)), "periodic": [False, False, True]}, r"periodic = \[False, False, True\]"),
    ],
)
def test_what_is_not_a_structure_is_refused_with_its_reason(changes, message):
    with pytest.raises(ValueError, match=message):
        structure(**changes)


@pytest.mark.parametrize("spin", [1, 6])
@pytest.mark.parametrize("charge", [-2, 0, 3])
def test_charges_of_either_sign_and_any_multiplicity_are_kept(charge, spin):
    assert (structure(charge=charge, spin=spin).charge, structure(charge=charge, spin=spin).spin) == (charge, spin)


@given(structures())
def test_stress_is_defined_exactly_where_all_directions_repeat(drawn):
    assert drawn.has_volume == all(drawn.periodic)
    assert len(drawn) == len(drawn.positions)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_whether_a_cell_is_flat_does_not_depend_on_its_size(scale):
    assert structure(cell=scale * np.eye(3)).has_volume
    with pytest.raises(ValueError, match="no volume"):
        structure(cell=scale * np.diag([1.0, 1.0, 0.0]))


def test_rows_that_nothing_repeats_along_may_be_zero():
    assert not structure(cell=np.diag([3.0, 3.0, 0.0]), periodic=[True, True, False]).has_volume
    assert not structure(cell=np.zeros((3, 3)), periodic=NOWHERE).has_volume


def test_lists_and_single_precision_become_arrays_of_the_declared_types():
    made = structure(positions=np.zeros((2, 3), dtype=np.float32), cell=(4 * np.eye(3)).tolist())
    assert (made.atomic_numbers.dtype, made.positions.dtype) == (np.int64, np.float64)
    assert (made.cell.dtype, made.periodic.dtype) == (np.float64, np.bool_)


def end_to_end(made):
    """As arguments of `structures_end_to_end`."""
    return (
        [len(each) for each in made],
        np.concatenate([each.atomic_numbers for each in made] or [np.zeros(0, np.int64)]),
        np.concatenate([each.positions for each in made] or [np.zeros((0, 3))]),
        np.array([each.cell for each in made]).reshape(-1, 3, 3),
        np.array([each.periodic for each in made], dtype=bool).reshape(-1, 3),
        [(each.charge, each.spin) for each in made],
    )


@given(st.lists(structures(), max_size=4))
def test_structures_made_together_are_those_made_one_by_one(made):
    found = structures_end_to_end(*end_to_end(made))
    assert len(found) == len(made)
    for one, other in zip(found, made, strict=True):
        assert one.__dict__.keys() == other.__dict__.keys()
        for name, value in other.__dict__.items():
            if name != "task":  # nobody was asked for one
                np.testing.assert_array_equal(getattr(one, name), value)
                assert np.asarray(getattr(one, name)).dtype == np.asarray(value).dtype


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (1, [1, 8, 1, 119], "atom 1 has atomic number 119"),
        (2, [[0.0, 0, 0], [1, 0, 0], [0, 0, 0], [np.nan, 0, 0]], "position of atom 1"),
        (3, [np.eye(3), np.diag([1.0, 1.0, 0.0])], "no volume"),
        (3, [np.eye(3), np.diag([1.0, np.inf, 1.0])], "not finite"),
        (5, [(0, 1), (0, 0)], "spin is 0"),
        (0, [2, 1], "counts are of 3 atoms, and there are 4 atomic numbers"),
        (0, [4, 0], "no atoms"),
    ],
)
def test_what_is_wrong_with_one_of_structures_made_together_is_said_of_it(place, wrong, message):
    arguments = list(end_to_end([structure(), structure()]))
    arguments[place] = np.array(wrong) if isinstance(arguments[place], np.ndarray) else wrong
    with pytest.raises(ValueError, match=message):
        structures_end_to_end(*arguments)
