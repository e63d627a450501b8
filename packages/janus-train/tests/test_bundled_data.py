"""The data set that is shipped: what the documentation promises of it."""

from collections import defaultdict
from importlib.resources import files

import numpy as np
import pytest
from ase.io import read

from janus_train.check_data import check

PATH = files("janus_train.data") / "bundled.extxyz.gz"


@pytest.fixture(scope="module")
def frames():
    return read(str(PATH), ":")


def test_there_are_enough_structures_kinds_and_elements(frames):
    assert len(frames) >= 1200
    assert {atoms.info["task"] for atoms in frames} >= {"molecules", "ionic", "metals", "surfaces"}
    assert len({z for atoms in frames for z in atoms.numbers}) >= 20
    assert len(PATH.read_bytes()) < 3_000_000


def test_every_frame_is_labelled(frames):
    for atoms in frames:
        assert np.isfinite(atoms.get_potential_energy())
        assert np.isfinite(atoms.get_forces()).all()
        assert atoms.get_forces().shape == (len(atoms), 3)
        assert {"task", "charge", "spin", "split", "group"} <= set(atoms.info)
        assert atoms.info["split"] in ("train", "val", "test")
        assert int(atoms.info["spin"]) >= 1
        assert ("stress" in atoms.calc.results) == bool(atoms.pbc.all())


def test_charges_and_spins_vary_and_fit_the_number_of_electrons(frames):
    molecules = [atoms for atoms in frames if atoms.info["task"] == "molecules"]
    assert len({atoms.info["charge"] for atoms in molecules}) >= 3
    assert len({atoms.info["spin"] for atoms in molecules}) >= 3
    for atoms in molecules:
        electrons = int(atoms.numbers.sum()) - int(atoms.info["charge"])
        assert (electrons - (int(atoms.info["spin"]) - 1)) % 2 == 0


def test_no_group_is_in_two_splits_and_every_task_has_all_three(frames):
    splits, tasks = defaultdict(set), defaultdict(set)
    for atoms in frames:
        splits[atoms.info["task"], atoms.info["group"]].add(atoms.info["split"])
        tasks[atoms.info["task"]].add(atoms.info["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert all(found == {"train", "val", "test"} for found in tasks.values())


def test_validation_and_test_have_no_element_that_training_lacks(frames):
    elements = defaultdict(set)
    for atoms in frames:
        elements[atoms.info["task"], atoms.info["split"] == "train"] |= set(atoms.numbers.tolist())
    for task in {task for task, _ in elements}:
        assert elements[task, False] <= elements[task, True]


def test_forces_of_a_structure_that_repeats_or_is_free_add_up_to_nothing(frames):
    # Translation costs no energy. Written forces are rounded to 1e-5 eV/Å, so n atoms may miss zero by n half units.
    for atoms in frames:
        assert np.abs(atoms.get_forces().sum(axis=0)).max() < 1e-5 * len(atoms) + 1e-4


def test_stress_is_symmetric(frames):
    for atoms in frames:
        if atoms.pbc.all():
            stress = atoms.get_stress(voigt=False)
            assert np.abs(stress - stress.T).max() < 1e-7


def test_nothing_in_it_is_suspicious():
    report = check(None, [])
    assert not report.suspicious, report.text
