import copy

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from hypothesis import given
from hypothesis import strategies as st

from graph_strategies import structures
from janus_graph.ase import structure_from_ase, structure_to_ase


@given(structures())
def test_a_structure_comes_back_from_ase_as_it_went(structure):
    back = structure_from_ase(structure_to_ase(structure), task=structure.task)
    for name in ("atomic_numbers", "positions", "cell", "periodic"):
        np.testing.assert_array_equal(getattr(back, name), getattr(structure, name))
    assert (back.charge, back.spin, back.task) == (structure.charge, structure.spin, structure.task)


@pytest.mark.parametrize(
    "atoms", [molecule("H2O"), bulk("NaCl", "rocksalt", a=5.6), fcc111("Al", (1, 1, 2), vacuum=5.0)], ids=str
)
def test_atoms_come_back_from_a_structure_as_they_went(atoms):
    atoms.info = {"charge": -1, "spin": 2}
    back = structure_to_ase(structure_from_ase(atoms))
    assert back == atoms  # numbers, positions, cell, periodicity
    assert back.info == atoms.info


@given(structure=structures(), task=st.integers(0, 3))
def test_the_atoms_of_the_caller_are_not_changed_and_share_no_memory(structure, task):
    atoms = structure_to_ase(structure)
    before = copy.deepcopy(atoms)
    made = structure_from_ase(atoms, task=task)
    made.positions[:] += 1.0
    made.cell[:] += 1.0
    made.atomic_numbers[:] = 1
    assert atoms == before
    assert atoms.info == before.info
    structure_to_ase(structure).positions[:] += 1.0
    assert atoms == structure_to_ase(structure)


def test_atoms_without_charge_or_spin_are_neutral_singlets_of_the_first_task():
    made = structure_from_ase(molecule("CH4"))
    assert (made.charge, made.spin, made.task) == (0, 1, 0)


@pytest.mark.parametrize("value", [2, 2.0, np.int64(2), np.float64(2.0), "2"])
def test_whole_numbers_may_come_as_any_type(value):
    atoms = molecule("O2")
    atoms.info.update(charge=value, spin=value)
    made = structure_from_ase(atoms)
    assert (made.charge, made.spin) == (2, 2)
    assert (type(made.charge), type(made.spin)) == (int, int)


@pytest.mark.parametrize("name", ["charge", "spin"])
@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf"), "high", None, [1, 2]])
def test_a_charge_or_spin_that_is_no_whole_number_is_refused(name, value):
    atoms = molecule("O2")
    atoms.info[name] = value
    with pytest.raises(ValueError, match=rf"info\['{name}'\] is .* must be a whole number"):
        structure_from_ase(atoms)


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms(), "no atoms"),
        (Atoms("X", positions=np.zeros((1, 3))), "atomic number 0"),
        (Atoms("H", positions=np.zeros((1, 3)), pbc=True), "no volume"),
    ],
)
def test_atoms_that_are_no_structure_are_refused(atoms, message):
    with pytest.raises(ValueError, match=message):
        structure_from_ase(atoms)
