"""Errors of predictions: sums and counts, by task, element and group, the same on any number of ranks."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_comm import SingleRank
from janus_comm.testing import run_rank_threads
from janus_graph import Structure
from janus_train.data.batch import FrameSource
from janus_train.data.frame import Frame
from janus_train.display import elements_table, errors_table, groups_table
from janus_train.evaluate import Prediction, evaluate


def frame_and_prediction(number: int, task: str, group: str, labels: frozenset[str]) -> tuple[Frame, Prediction]:
    rng = np.random.default_rng(number)
    count = 1 + number % 3
    structure = Structure(rng.choice([8, 14], size=count), 9 * rng.random((count, 3)), np.eye(3) * 9, np.full(3, True))
    frame = Frame(
        structure, task, group=group,
        energy=float(rng.normal()) if "energy" in labels else None,
        forces=rng.normal(size=(count, 3)) if "forces" in labels else None,
        stress=rng.normal(size=(3, 3)) if "stress" in labels else None,
    )  # fmt: skip
    return frame, Prediction(float(rng.normal()), rng.normal(size=(count, 3)), rng.normal(size=(3, 3)), None)


FRAMES = st.lists(
    st.tuples(
        st.sampled_from(["metals", "salts"]), st.sampled_from(["", "hot", "cold"]),
        st.frozensets(st.sampled_from(["energy", "forces", "stress"])),
    ), max_size=7,
)  # fmt: skip


@settings(max_examples=10)
@given(FRAMES)
def test_metrics_are_sums_and_counts_so_1_2_and_4_ranks_give_the_same_numbers_and_a_double_loop_does(rows):
    pairs = [frame_and_prediction(number, *row) for number, row in enumerate(rows)]
    source = FrameSource([frame for frame, _ in pairs], 2.0, 1.0)
    predictions = list(enumerate(prediction for _, prediction in pairs))
    references = np.zeros((2, 119))
    alone = evaluate(predictions, source, SingleRank(), references)
    for ranks in (2, 4):
        for found in run_rank_threads(
            ranks, lambda world: evaluate(predictions[world.rank :: world.size], source, world, references)
        ):
            assert (found.tasks, found.sums, found.groups) == (alone.tasks, alone.sums, alone.groups)
            assert found.elements == alone.elements
            assert all(np.array_equal(found.parity[name], pairs) for name, pairs in alone.parity.items())
    for name, tables in (("task", alone.tasks), ("group", alone.groups)):
        for key, errors in tables.items():
            own = [(f, p) for f, p in pairs if (f.task if name == "task" else f"{f.task}/{f.group}") == key]
            assert errors["structures"] == len(own)
            for column, value in by_hand(own).items():
                assert errors[column] == (None if value is None else pytest.approx(value, rel=1e-12)), column
    for symbol, z in (("O", 8), ("Si", 14)):
        own = [
            abs(x - y)
            for frame, found in pairs
            if frame.forces is not None
            for number, force, label in zip(frame.structure.atomic_numbers, found.forces, frame.forces, strict=True)
            for x, y in zip(force, label, strict=True)
            if number == z
        ]
        assert (symbol in alone.elements) == bool(own)
        if own:
            assert alone.elements[symbol]["atoms"] == len(own) / 3
            assert alone.elements[symbol]["forces_mae"] == pytest.approx(sum(own) / len(own), rel=1e-12)
    assert set(alone.groups) == {f"{frame.task}/{frame.group}" for frame, _ in pairs if frame.group}


def by_hand(pairs) -> dict:
    """MAE and RMSE of every component there is a label for, one by one."""
    errors: dict[str, list[float]] = {"energy": [], "forces": [], "stress": []}
    zero = []
    for frame, found in pairs:
        if frame.energy is not None:
            errors["energy"].append((found.energy - frame.energy) / len(frame.structure))
        for name in ("forces", "stress"):
            label = getattr(frame, name)
            if label is not None:
                for x, y in zip(getattr(found, name).ravel(), label.ravel(), strict=True):
                    errors[name].append(x - y)
        zero += [] if frame.forces is None else [abs(x) for x in frame.forces.ravel()]
    expected: dict = {"structures": len(pairs), "atoms": sum(len(frame.structure) for frame, _ in pairs)}
    for name, values in errors.items():
        expected[f"{name}_mae"] = sum(map(abs, values)) / len(values) if values else None
        expected[f"{name}_rmse"] = math.sqrt(sum(x * x for x in values) / len(values)) if values else None
    expected["energy_shift"] = sum(errors["energy"]) / len(errors["energy"]) if errors["energy"] else None
    return {**expected, "forces_mae_zero": sum(zero) / len(zero) if zero else None, "magmoms_mae": None}


def test_a_constant_added_to_the_energies_of_a_group_is_its_shift():
    pairs = [frame_and_prediction(n, "salts", f"g{n % 2}", frozenset(["energy"])) for n in range(6)]
    source = FrameSource([frame for frame, _ in pairs], 2.0, 1.0)

    def groups(constant: float) -> dict:
        moved = [
            replace(found, energy=found.energy + constant * len(frame.structure) * (frame.group == "g1"))
            for frame, found in pairs
        ]
        return evaluate(enumerate(moved), source, SingleRank()).groups

    before, after = groups(0.0), groups(-0.25)
    assert after["salts/g0"] == before["salts/g0"]
    moved = after["salts/g1"]["energy_shift"] - before["salts/g1"]["energy_shift"]
    assert moved == pytest.approx(-0.25, rel=1e-9)
    assert f"{1000 * after['salts/g1']['energy_shift']:.1f}" in groups_table(after)


def test_tables_of_text_show_the_worst_groups_first_and_say_how_many_are_not_shown():
    pairs = [frame_and_prediction(n, "salts", f"g{n}", frozenset(["energy", "forces"])) for n in range(6)]
    source = FrameSource([frame for frame, _ in pairs], 2.0, 1.0)
    found = evaluate(enumerate(prediction for _, prediction in pairs), source, SingleRank())
    text = groups_table(found.groups, most=2)
    worst = sorted(found.groups, key=lambda name: -found.groups[name]["forces_mae"])
    assert [line.split()[0] for line in text.splitlines()[2:4]] == worst[:2]
    assert text.splitlines()[-1] == "4 more groups have smaller errors"
    assert errors_table(found.tasks).splitlines()[2].startswith("salts")
    assert set(found.elements) == {line.split()[0] for line in elements_table(found.elements).splitlines()[2:]}
