from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_graph import Structure
from janus_train.config import ReferencesConfig, TaskReferences
from janus_train.data.columns import columns_of
from janus_train.data.energy_rows import _BLOCK, EnergyRows, element_counts
from janus_train.data.frame import Frame
from janus_train.data.reference_table import about_references, references_text
from janus_train.data.statistics import Given, fit_statistics, require_determined, undetermined_frames
from janus_train.failure import UserError

FREE = {1: -13.6, 6: -1029.0, 8: -2041.0}


def frame(
    numbers: list[int], energy: float | None, task: str = "a", force: float | None = None, charge: int = 0
) -> Frame:
    count = len(numbers)
    positions = np.arange(3.0 * count).reshape(-1, 3)
    structure = Structure(np.array(numbers), positions, np.zeros((3, 3)), np.zeros(3, bool), charge=charge)
    forces = None if force is None else np.full((count, 3), force)
    return Frame(structure, task, energy=energy, forces=forces, origin=f"frame of {numbers}")


def bound(numbers: list[int], binding: float = 4.0) -> Frame:
    """A molecule whose atoms are this much lower than on their own."""
    return frame(numbers, sum(FREE[z] - binding for z in numbers))


def atoms() -> list[Frame]:
    """Isolated atoms; ions and excited states among them."""
    ground = [frame([z], energy) for z, energy in FREE.items()]
    return [*ground, frame([8], FREE[8] + 2.0), frame([8], FREE[8] - 1.5, charge=-1), frame([1], None)]


MOLECULES = [[1, 1], [6, 8], [6, 1, 1, 1, 1], [8, 1, 1], [8, 8]]


@given(st.floats(-5000, 5000), st.floats(-5000, 5000), st.floats(-5000, 5000))
def test_energies_that_are_sums_over_atoms_give_back_their_terms(hydrogen: float, carbon: float, oxygen: float):
    value = {1: hydrogen, 6: carbon, 8: oxygen}
    found = fit_statistics([frame(numbers, sum(value[z] for z in numbers)) for numbers in MOLECULES], ["a"])
    for z, expected in value.items():
        assert found.references[0, z] == pytest.approx(expected, abs=1e-8)
    assert found.residuals[0] == pytest.approx(0, abs=1e-8)
    assert found.fits[0].fit.rank == 3


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from([1, 6, 8, 26]), min_size=1, max_size=6), st.floats(-50, 50)), max_size=30
    ),
    st.sampled_from([0.0, 1e-3, 1.0]),
    st.booleans(),
)
def test_frames_that_pass_by_once_give_the_least_squares_of_all_their_rows(rows, ridge: float, one_known: bool):
    seen = EnergyRows()
    for numbers, energy in rows:
        seen.add(element_counts(numbers), energy)
        seen._take_in()  # as small as blocks can be
    known = {8: -3.0} if one_known else {}
    found = seen.fit(known, ridge)
    present = sorted({z for numbers, _ in rows for z in numbers} - set(known))
    assert list(found.fitted) == present
    if not rows:
        return
    fractions = np.array([[numbers.count(z) / len(numbers) for z in present] for numbers, _ in rows])
    per_atom = np.array([energy / len(numbers) for numbers, energy in rows])
    left = per_atom - np.array([sum(known.get(z, 0.0) for z in numbers) / len(numbers) for numbers, _ in rows])
    if present:
        # The textbook's normal equations around the mean, which the pseudo-inverse solves with the smallest step.
        middle = per_atom.mean()
        normal = fractions.T @ fractions + ridge * len(rows) * np.eye(len(present))
        step = (
            np.linalg.pinv(normal, rcond=1e-9, hermitian=True) @ fractions.T @ (left - fractions.sum(axis=1) * middle)
        )
        assert found.energies[present] == pytest.approx(middle + step, abs=1e-5)
        assert found.rank == np.linalg.matrix_rank(fractions, tol=1e-8)
        for direction in found.directions[:, present]:
            assert fractions @ direction == pytest.approx(0, abs=1e-8)
        assert len(found.directions) == len(present) - found.rank
    residual = left - (fractions @ found.energies[present] if present else 0.0)
    assert found.residual == pytest.approx(np.sqrt(np.mean(residual**2)), abs=1e-8)


@given(
    st.lists(st.lists(st.sampled_from([1, 6, 8, 26]), min_size=1, max_size=6), max_size=20),
    st.integers(0, 20),
)
def test_rows_say_the_same_one_by_one_from_columns_and_of_two_parts(compositions: list[list[int]], cut: int):
    frames = [frame(numbers, -3.0 * len(numbers) + place) for place, numbers in enumerate(compositions)]
    one_by_one, first, second = EnergyRows(), EnergyRows(), EnergyRows()
    for each in frames:
        assert each.energy is not None
        one_by_one.add(element_counts(each.structure.atomic_numbers), each.energy)
    first.add_columns(columns_of(frames[:cut]))
    second.add_columns(columns_of(frames[cut:]))
    for found in (first.with_rows_of(second), second.with_rows_of(first)):
        expected, fit = one_by_one.fit({}), found.fit({})
        assert found.count == len(frames)
        assert found.present.tolist() == one_by_one.present.tolist()
        assert found.mean == pytest.approx(one_by_one.mean)
        assert fit.fitted == expected.fitted
        assert fit.rank == expected.rank
        assert fit.energies == pytest.approx(expected.energies, abs=1e-8)
        assert fit.residual == pytest.approx(expected.residual, abs=1e-8)


def test_blocks_are_full_in_the_middle_of_columns():
    """Four blocks and a bit, in parts of which none ends where a block does."""
    compositions = [[1] * (1 + place % 3) + [8] * (1 + place % 5) for place in range(4 * _BLOCK + 17)]
    frames = [frame(numbers, FREE[1] * numbers.count(1) + FREE[8] * numbers.count(8)) for numbers in compositions]
    seen = EnergyRows()
    for start in range(0, len(frames), 1500):
        seen.add_columns(columns_of(frames[start : start + 1500]))
    found = seen.fit({})
    assert seen.count == len(frames)
    assert {z: found.energies[z] for z in (1, 8)} == pytest.approx({1: FREE[1], 8: FREE[8]})
    assert found.residual == pytest.approx(0, abs=1e-8)


def test_isolated_atoms_in_their_ground_state_are_the_references_where_each_element_has_one():
    found = fit_statistics([*atoms(), *map(bound, MOLECULES)], ["a"])
    assert {z: found.references[0, z] for z in FREE} == FREE
    assert found.fits[0].source == "isolated atoms"
    assert not found.warnings
    lacking = [frame for frame in atoms() if frame.structure.atomic_numbers[0] != 6]
    found = fit_statistics([*lacking, *map(bound, MOLECULES)], ["a"])
    assert found.fits[0].source == "least squares"
    with pytest.raises(UserError, match=r"references\.energies=atoms, but no training frame of task a is a neutral C"):
        fit_statistics([*lacking, *map(bound, MOLECULES)], ["a"], ReferencesConfig(energies="atoms"))
    for way, source in (("fit", "least squares"), ("atoms", "isolated atoms")):
        found = fit_statistics([*atoms(), *map(bound, MOLECULES)], ["a"], ReferencesConfig(energies=way))
        assert found.fits[0].source == source


@pytest.mark.parametrize(("shift", "said"), [(0.0, None), (60.0, "above"), (-60.0, "below")])
def test_isolated_atoms_of_another_functional_are_told(shift: float, said: str | None):
    moved = [frame([z], FREE[z] - shift) for z in FREE]  # everything else is then as much higher
    found = fit_statistics([*moved, *map(bound, MOLECULES)], ["a"])
    told = "\n".join(found.warnings)
    assert (f"eV/atom {said} their isolated atoms" in told) == (said is not None)
    assert ("the isolated O atom has" in told) == (said is not None)


def test_an_element_in_one_frame_only_is_told():
    found = fit_statistics([*map(bound, MOLECULES), bound([6, 6, 1, 1])], ["a"])
    assert not found.warnings
    found = fit_statistics([*map(bound, MOLECULES), frame([8, 26], -3000.0)], ["a"])
    (told,) = found.warnings
    assert told.startswith("task a: Fe is in one frame only, frame of [8, 26]")


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_table_of_the_user_counts_and_what_it_leaves_out_is_fitted(suffix: str, tmp_path: Path):
    frames = [*map(bound, MOLECULES)]
    path = tmp_path / f"table{suffix}"
    path.write_text('{"H": -20.0, "O": -2040.5}' if suffix == ".json" else "H: -20.0\nO: -2040.5\n")
    for table in (path, {"H": -20.0, "O": -2040.5}):
        found = fit_statistics(frames, ["a"], ReferencesConfig(energies=table))
        assert found.references[0, [1, 8]].tolist() == [-20.0, -2040.5]
        assert found.fits[0].source == "table, least squares for the rest"
        assert found.fits[0].fit.fitted == (6,)
        left = [f.energy - sum(found.references[0, z] for z in f.structure.atomic_numbers) for f in frames]
        per_atom = np.array(left) / [len(f.structure) for f in frames]
        assert found.residuals[0] == pytest.approx(np.sqrt(np.mean(per_atom**2)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read"),
        ("[1, 2]", "is no table"),
        ("Xy: 1", "'Xy': 1"),
        ("H: low", "'low'"),
        ("H: {", "neither YAML"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(text: str | None, said: str, tmp_path: Path):
    path = tmp_path / "table.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"references\.energies: .*table\.yaml") as raised:
        fit_statistics([bound([1, 1])], ["a"], ReferencesConfig(energies=path))
    assert said in str(raised.value)


def test_references_that_compositions_leave_open_are_an_error_that_names_them_unless_a_ridge_is_asked_for():
    frames = [bound([8, 1, 1]), bound([6, 6, 1, 1])]
    whole = fit_statistics([*frames, bound([1, 1])], ["a"])
    require_determined(whole, ["a"], ReferencesConfig())
    with pytest.raises(
        UserError, match="task a: the compositions fix 2 of 3 reference energies; open are those of H, C"
    ):
        require_determined(fit_statistics(frames, ["a"]), ["a"], ReferencesConfig())
    for mended in (ReferencesConfig(ridge=0.0), ReferencesConfig(ridge=1e-6), ReferencesConfig(energies={"H": -13.6})):
        require_determined(fit_statistics(frames, ["a"], mended), ["a"], mended)
    # What is fixed is not among those that are named.
    partly = fit_statistics([bound([1, 1]), bound([6, 8]), bound([6, 8, 1])], ["a"])
    assert partly.fits[0].fit.open == (6, 8)


def test_a_ridge_pulls_towards_the_mean_and_the_smallest_one_leaves_the_fit_alone():
    frames = [bound(numbers, 1.0 + 0.1 * len(numbers)) for numbers in MOLECULES]
    plain, tiny, huge = (
        fit_statistics(frames, ["a"], ReferencesConfig(ridge=ridge)).references[0, list(FREE)]
        for ridge in (0.0, 1e-12, 1e9)
    )
    assert tiny == pytest.approx(plain, abs=1e-5)
    mean = np.mean([f.energy / len(f.structure) for f in frames])
    assert huge == pytest.approx([mean] * 3, rel=1e-6)


def test_one_molecule_needs_one_number_and_has_it():
    frames = [frame([8, 1, 1], -10.0), frame([1, 8, 1], -10.2), frame([8, 8, 1, 1, 1, 1], -20.2)]
    found = fit_statistics(frames, ["a"])
    require_determined(found, ["a"], ReferencesConfig())
    assert found.references[0, 8] + 2 * found.references[0, 1] == pytest.approx(-10.1)
    assert found.references[0, 8] == pytest.approx(found.references[0, 1])
    assert "fix 1 of 2" in found.warnings[0]
    assert "a composition other than that of all frames" in found.warnings[0]
    assert undetermined_frames([frame([1, 1, 8], -10.0)], found, ["a"]) == ()
    (told,) = undetermined_frames([*frames, frame([8, 8], -9.0), frame([1, 1], -1.0)], found, ["a"])
    assert told.startswith("task a: frame of [8, 8] has a composition whose reference energy")


def test_tasks_have_their_own_references_and_scales():
    frames = [frame([1, 1], -2.0, "a", 1.0), frame([1, 1], -4.0, "b", 3.0), frame([1], 0.0, "b", 0.0)]
    config = ReferencesConfig(energies="fit", tasks={"a": TaskReferences(energies="fit")})
    found = fit_statistics(frames, ["a", "b"], config)
    assert found.references[0, 1] == pytest.approx(-1.0)
    assert found.scales.tolist() == pytest.approx([1.0, 3.0])
    config = ReferencesConfig(scale=7.0, tasks={"b": TaskReferences(energies={"H": -0.5}, scale=2.0)})
    found = fit_statistics(frames, ["a", "b"], config)
    assert found.scales.tolist() == [7.0, 2.0]
    assert found.references[:, 1].tolist() == pytest.approx([-1.0, -0.5])


def test_what_a_task_brings_along_counts_unless_the_user_names_the_task():
    frames = [frame([1, 1], -2.0, "old", 1.0), frame([1, 8], -9.0, "new", 1.0), frame([1, 26], -7.0, "old")]
    given_ones = {
        "old": Given({1: -0.9, 6: -30.0}, 5.0, "those of old", kept=True),
        "new": Given({1: -0.9}, 5.0, "those of old", kept=False),
        "unseen": Given({8: -75.0}, 4.0, "those of unseen", kept=True),
    }
    tasks = ["unseen", "old", "new"]
    found = fit_statistics(frames, tasks, None, given_ones)
    assert found.references[0, 8] == -75.0
    assert found.references[1, [1, 6]].tolist() == [-0.9, -30.0]
    assert found.references[1, 26] == pytest.approx(-6.1)  # which the old task had not seen
    assert found.references[2, [1, 8]].tolist() == pytest.approx([-0.9, -8.1])
    assert found.scales.tolist() == [4.0, 5.0, 5.0]
    assert fit_statistics(frames, tasks, ReferencesConfig(scale=9.0), given_ones).scales.tolist() == [4.0, 5.0, 9.0]
    table = ReferencesConfig(energies={"H": -2.0, "O": -3.0}, tasks={"unseen": TaskReferences(scale=1.5)})
    found = fit_statistics(frames, tasks, table, given_ones)
    assert found.references[1, 1] == -0.9
    assert found.references[2, [1, 8]].tolist() == [-2.0, -3.0]
    assert found.scales[0] == 1.5
    named = ReferencesConfig(tasks={"old": TaskReferences(energies={"H": -2.0})})
    assert fit_statistics(frames, tasks, named, given_ones).references[1, [1, 6]].tolist() == [-2.0, 0.0]


def test_without_any_label_there_is_nothing_to_take_off():
    found = fit_statistics([frame([1, 8], None)], ["a"])
    assert not found.references.any()
    assert found.scales[0] > 0
    assert found.fits == (None,)
    assert "none" in references_text(found, ["a"])


def test_people_and_programs_are_told_where_references_come_from():
    found = fit_statistics([*atoms(), *map(bound, MOLECULES)], ["a"])
    text = references_text(found, ["a"])
    assert "references of a: isolated atoms; they leave " in text
    assert " C   -1029.0000" in text
    about = about_references(fit_statistics([bound([8, 1, 1])], ["a"]), ["a"])
    assert about["a"]["rank"] == 1
    assert about["a"]["open"] == ["H", "O"]


@given(st.lists(st.lists(st.integers(1, 118), min_size=1, max_size=5), max_size=5))
def test_atoms_are_counted_by_element_over_all_tasks(compositions: list[list[int]]):
    frames = [frame(numbers, None, task="ab"[place % 2]) for place, numbers in enumerate(compositions)]
    found = fit_statistics(frames, ["a", "b"]).atoms
    every = [z for numbers in compositions for z in numbers]
    assert found.tolist() == [every.count(z) for z in range(119)]
