"""Several sources: tasks, weights and keys of each; what is set aside, and what is there twice."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from hypothesis import given
from hypothesis import strategies as st

from janus_train.config import load_config, save_config
from janus_train.data.batching import drawn, epoch_batches
from janus_train.data.columns import columns_of
from janus_train.data.duplicates import find_repeats, repeat_warnings
from janus_train.data.frame import Frame
from janus_train.data.geometry import geometry_checksums, same_geometry
from janus_train.data.load import load_data, split_warnings
from janus_train.data.split import set_aside
from janus_train.failure import UserError
from made_data import crystal, molecule, moved, to_atoms

weights = st.fractions(min_value=Fraction(1, 8), max_value=4, max_denominator=8)
sources = st.lists(st.tuples(st.integers(0, 12), weights), max_size=4)


@given(sources, st.integers(0, 3))
def test_each_frame_is_drawn_as_often_as_its_weight_says(given: list[tuple[int, Fraction]], seed: int):
    """In every epoch whole times or one more, and over eight epochs equally often, give or take one."""
    draws = [(count, float(weight)) for count, weight in given]
    total = sum(count for count, _ in given)
    epochs = [drawn(total, draws, seed, epoch) for epoch in range(8)]
    start = 0
    for count, weight in given:
        own = [Counter(epoch[(epoch >= start) & (epoch < start + count)].tolist()) for epoch in epochs]
        for counted in own:
            assert abs(counted.total() - count * weight) < 1
            assert all(counted[place] - int(weight) in (0, 1) for place in range(start, start + count))
        over_all = [sum(counted[place] for counted in own) for place in range(start, start + count)]
        assert sum(over_all) == round(8 * count * weight)
        assert max(over_all, default=0) - min(over_all, default=0) <= 1
        start += count


def test_weights_of_one_change_nothing_and_epochs_of_weights_can_be_had_in_any_order():
    costs = np.arange(40)
    plain = epoch_batches(costs, 60, 3, 2)
    weighted = epoch_batches(costs, 60, 3, 2, [(25, 1.0), (15, 1.0)])
    assert [batch.tolist() for batch in plain] == [batch.tolist() for batch in weighted]
    later = epoch_batches(costs, 60, 3, 7, [(25, 0.5), (15, 2.25)])
    again = epoch_batches(costs, 60, 3, 7, [(25, 0.5), (15, 2.25)])
    assert [batch.tolist() for batch in later] == [batch.tolist() for batch in again]
    assert [batch.tolist() for batch in later] != [
        batch.tolist() for batch in epoch_batches(costs, 60, 3, 8, [(25, 0.5), (15, 2.25)])
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sources")
    crystals = [to_atoms(crystal(seed), energy="E_dft") for seed in range(6)]
    molecules = [to_atoms(molecule(seed)) for seed in range(8)]
    for atoms in crystals:
        del atoms.info["task"]
    write(directory / "crystals.extxyz", crystals)
    write(directory / "molecules.extxyz", molecules)
    return directory


def test_sources_have_tasks_weights_and_keys_of_their_own(files: Path, tmp_path: Path):
    (tmp_path / "run.yaml").write_text(
        f"""
data:
  train:
    - {{path: {files}/crystals.extxyz, task: pbe, weight: 2.5, keys: {{energy: E_dft}}}}
    - {files}/molecules.extxyz
  val: {{path: {files}/*.extxyz, task: pbe, keys: {{energy: E_dft}}}}
"""
    )
    config = load_config(tmp_path / "run.yaml")
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    data = load_data(config)
    assert data.tasks == ("made", "pbe")
    assert data.draws == ((6, 2.5), (8, 1.0))
    assert all(frame.has("energy") for frame in data.train)
    assert [frame.has("energy") for frame in data.val] == [True] * 6 + [False] * 8


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.train=[{path: a, weight: 0}]", "data.train.0.weight"),
        ("data.train=[{path: a, wieght: 1}]", "unknown key 'data.train.0.wieght'"),
        ("data.train=[{path: a, keys: {enrgy: E}}]", "data.train.0.keys.enrgy"),
        ("data.train=[{task: pbe}]", "data.train.0.path"),
        ("data.val=[{path: a, weight: 2}]", "every validation frame counts once: leave weight out"),
        ("data.split_by=formula", "data.split_by"),
    ],
)
def test_mistakes_in_sources_are_named(setting: str, message: str):
    with pytest.raises(UserError) as caught:
        load_config(None, [setting])
    assert message in str(caught.value)


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), max_size=20), st.sampled_from([0.1, 0.5]), st.integers(0, 2))
def test_whole_groups_are_set_aside_whatever_the_order_of_files(groups: list[str], fraction: float, seed: int):
    frames = [replace(molecule(0), group=group) for group in groups]
    count = len({group for group in groups if group}) + groups.count("")
    halves = [columns_of(frames[: len(frames) // 2]), columns_of(frames[len(frames) // 2 :])]
    if count < 2:
        with pytest.raises(UserError, match="one group only"):
            set_aside(halves, "group", fraction, seed)
        return
    aside = np.concatenate(set_aside(halves, "group", fraction, seed))
    names = [group or f"alone {place}" for place, group in enumerate(groups)]
    chosen = {name for name, out in zip(names, aside, strict=True) if out}
    assert not chosen & {name for name, out in zip(names, aside, strict=True) if not out}
    assert len(chosen) == min(count - 1, max(1, round(fraction * count)))
    if "" not in groups:
        turned = np.concatenate(set_aside(halves[::-1], "group", fraction, seed))
        assert chosen == {
            name
            for name, out in zip([*names[len(frames) // 2 :], *names[: len(frames) // 2]], turned, strict=True)
            if out
        }


@pytest.mark.parametrize(("by", "together"), [("composition", 2), ("frame", 12), ("group", 3)])
def test_what_stays_together_is_chosen(by: str, together: int):
    """Crystals and molecules have two formulas; there are three groups; each frame is its own where nothing counts."""
    frames = [replace((crystal if seed % 2 else molecule)(seed % 3), group=f"g{seed % 3}") for seed in range(12)]
    sizes = {int(np.concatenate(set_aside([columns_of(frames)], by, 0.01, seed)).sum()) for seed in range(4)}
    assert sizes == {12 // together}


@given(st.integers(0, 30), st.integers(0, 30), st.booleans())
def test_a_geometry_is_found_again_in_any_order_place_and_orientation(seed: int, turn: int, periodic: bool):
    frame = crystal(seed % 3) if periodic else molecule(seed % 3)
    other = moved(frame.structure, turn)
    rounded = replace(other, positions=np.round(other.positions, 8), cell=np.round(other.cell, 8))
    checksums = geometry_checksums([frame.structure, other, rounded])
    assert checksums[0] == checksums[1] == checksums[2]
    assert same_geometry(frame.structure, other)


def test_other_geometries_charges_and_elements_are_others():
    frame = crystal(1)
    structure = frame.structure
    nudged = structure.positions.copy()
    nudged[2, 0] += 0.003
    others = [
        replace(structure, positions=nudged), replace(structure, charge=1), replace(structure, spin=3),
        replace(structure, atomic_numbers=[14, 14, 8, 9]), replace(structure, cell=1.001 * structure.cell),
        crystal(2).structure, replace(structure, periodic=[True, True, False]),
    ]  # fmt: skip
    assert len(set(geometry_checksums([structure, *others]).tolist())) == 1 + len(others)
    assert not any(same_geometry(structure, other) for other in others)
    assert len(geometry_checksums([])) == 0
    apart = [replace(molecule(0).structure, positions=scale * molecule(0).structure.positions) for scale in (3.0, 3.1)]
    assert len(set(geometry_checksums(apart).tolist())) == 2
    assert not same_geometry(*apart)


def test_frames_that_are_there_twice_and_in_both_splits_are_named():
    train = [replace(molecule(seed), origin=f"train {seed}") for seed in range(4)]
    train.append(replace(train[2], structure=moved(train[2].structure, 1), origin="train 2 again"))
    val = [
        replace(molecule(9), origin="val new"),
        replace(train[1], structure=moved(train[1].structure, 2), origin="val old"),
    ]
    other_task = replace(train[3], task="another", origin="val another")
    repeats = find_repeats(train, [*val, other_task])
    assert repeats.duplicates.tolist() == [[4, 2]]
    assert repeats.leaks.tolist() == [[1, 1]]
    text = "\n".join(repeat_warnings(train, [*val, other_task]))
    for part in ("1 frame(s) for validation are in training too", "val old (as train 1)", "train 2 again (as train 2)"):
        assert part in text
    assert not repeat_warnings(train[:4], val[:1])
    empty: list[Frame] = []
    assert not repeat_warnings(empty, empty)


def test_large_groups_that_take_more_frames_from_training_than_was_asked_for_are_told(tmp_path: Path):
    frames = []
    for number in range(40):
        atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.7 + 0.001 * number]], info={"group": f"g{number % 2}"})
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((2, 3)))
        frames.append(atoms)
    write(tmp_path / "h2.extxyz", frames)
    settings = [f"data.train={tmp_path / 'h2.extxyz'}", "loss.stress=0"]
    told = {}
    for split_by in ("group", "frame"):
        config = load_config(None, [*settings, f"data.split_by={split_by}"])
        told[split_by] = split_warnings(load_data(config), config.data)
    assert told["frame"] == []
    assert told["group"][0].startswith("20 of 40 frames were set aside for validation where data.val_fraction=0.1 was")
