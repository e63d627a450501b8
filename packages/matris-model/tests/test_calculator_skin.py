"""Keeping edges between calls changes no number, whatever moves."""

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.filters import ExpCellFilter, FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE
from hypothesis import given, settings
from hypothesis import strategies as st

from matris_model import MatRISCalculator, MatRISMoE
from model_cases import TINY, stirred

ONE_TASK = stirred(TINY.replace(tasks=("only",)))
# As it starts: stirred weights make a surface that is rough on the scale of a time step.
SMOOTH = MatRISMoE(TINY.replace(tasks=("only",))).double()


def crystal(repeats: int = 2) -> Atoms:
    """Rocksalt of 64 atoms, from where on edges are kept."""
    atoms = bulk("NaCl", "rocksalt", a=5.0, cubic=True) * (repeats, 2, 2)
    atoms.rattle(0.05, seed=3)
    return atoms


def numbers_of(atoms: Atoms, calculator: MatRISCalculator) -> list[np.ndarray]:
    probe = atoms.copy()
    probe.calc = calculator
    stress = [probe.get_stress()] if probe.pbc.all() else []
    return [np.array(probe.get_potential_energy()), probe.get_forces(), probe.get_magnetic_moments(), *stress]


def assert_same(atoms: Atoms, kept: MatRISCalculator, fresh: MatRISCalculator) -> None:
    """Sums may run in another order where atoms are in another, so numbers agree to rounding."""
    eps = float(torch.finfo(kept.model.dtype).eps)
    for found, expected in zip(numbers_of(atoms, kept), numbers_of(atoms, fresh), strict=True):
        # Some hundred edges an atom, and as many atoms, add up their rounding.
        np.testing.assert_allclose(found, expected, rtol=0, atol=300 * eps * (1 + np.abs(expected).max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("step", [0.02, 0.2])
def test_a_random_walk_of_atoms_and_cell_gives_the_same_numbers(dtype, step):
    kept, fresh = MatRISCalculator(ONE_TASK, dtype=dtype, skin=0.4), MatRISCalculator(ONE_TASK, dtype=dtype, skin=0)
    atoms, rng = crystal(), np.random.default_rng(1)
    for _ in range(4):
        assert_same(atoms, kept, fresh)
        atoms.positions += step * rng.normal(size=atoms.positions.shape) / 3
        strain = np.eye(3) + 0.02 * step * rng.normal(size=(3, 3))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)


def test_whatever_else_changes_is_seen():
    kept, fresh = MatRISCalculator(ONE_TASK, skin=0.5), MatRISCalculator(ONE_TASK, skin=0)
    atoms = crystal()

    def wrap():
        atoms.positions[::3] += atoms.cell[0]

    def change_element():
        atoms.numbers[0] = 26

    def open_one_direction():
        atoms.pbc = (True, True, False)

    def swap_order():
        order = np.random.default_rng(0).permutation(len(atoms))
        atoms.numbers, atoms.positions = atoms.numbers[order], atoms.positions[order]

    def charge():
        atoms.info["charge"] = 1

    for change in (lambda: None, wrap, change_element, swap_order, charge, lambda: atoms.pop(), open_one_direction):
        change()
        assert_same(atoms, kept, fresh)
    for other in (molecule("H2O"), crystal(3), Atoms("O"), crystal()):
        assert_same(other, kept, fresh)


def test_edges_are_kept_while_they_are_enough():
    atoms = crystal()
    atoms.calc = MatRISCalculator(SMOOTH, skin=1.0)
    cache = atoms.calc._graph_of.__self__
    pytest.importorskip("numba", reason="without numba edges are looked for every time")
    for seed in range(5):
        atoms.rattle(0.01, seed=seed)
        atoms.get_forces()
    assert cache.rebuilds == 1
    atoms.positions[0] += 1.5
    atoms.get_forces()
    assert cache.rebuilds == 2


def test_dynamics_are_the_same_with_and_without():
    ends = []
    for skin in (0.0, 0.3):
        atoms = crystal()
        atoms.calc = MatRISCalculator(SMOOTH, skin=skin)
        atoms.set_velocities(0.1 * np.random.default_rng(0).normal(size=(len(atoms), 3)))
        VelocityVerlet(atoms, timestep=2 * units.fs).run(20)
        ends.append(atoms.get_positions())
    assert np.abs(ends[0] - crystal().positions).max() > 0.3
    np.testing.assert_allclose(ends[1], ends[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("cell_filter", [FrechetCellFilter, ExpCellFilter, lambda atoms: atoms])
@pytest.mark.parametrize("optimiser", [BFGS, FIRE])
def test_relaxations_are_the_same_with_and_without(cell_filter, optimiser):
    ends = []
    for skin in (0.0, 0.5):
        atoms = crystal()
        atoms.calc = MatRISCalculator(SMOOTH, skin=skin)
        optimiser(cell_filter(atoms), logfile=None).run(fmax=1e-9, steps=4)
        ends.append(np.concatenate([atoms.get_positions(), atoms.cell.array]))
    np.testing.assert_allclose(ends[1], ends[0], rtol=0, atol=1e-8)


def test_copies_give_the_same_and_neither_atoms_nor_cell_are_touched():
    atoms = crystal()
    atoms.positions += 30.0
    before = atoms.copy()
    atoms.calc = MatRISCalculator(ONE_TASK, skin=0.5)
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    copied = atoms.copy()
    copied.calc = atoms.calc
    assert copied.get_potential_energy() == energy
    np.testing.assert_array_equal(copied.get_forces(), forces)
    copied.set_cell(copied.cell.array * 1.01, scale_atoms=True)
    assert copied.get_potential_energy() != energy
    np.testing.assert_allclose(atoms.get_stress(), stress, rtol=0, atol=1e-12)
    assert atoms == before
    assert atoms.info == before.info
    forces[:] = 0.0
    assert atoms.get_forces().any()


def test_a_skin_below_zero_is_refused():
    with pytest.raises(ValueError, match="skin is -1"):
        MatRISCalculator(ONE_TASK, skin=-1)


@settings(max_examples=10)
@given(st.integers(0, 1000), st.floats(0, 0.6), st.floats(0.1, 2.0))
def test_any_two_steps_give_the_numbers_of_the_second(seed, size, skin):
    rng, atoms = np.random.default_rng(seed), crystal()
    kept, fresh = MatRISCalculator(ONE_TASK, skin=skin), MatRISCalculator(ONE_TASK, skin=0)
    numbers_of(atoms, kept)
    # The grid is 2.5 Å wide: at most 0.3 Å in each direction keeps atoms apart.
    atoms.positions += size * rng.uniform(-0.5, 0.5, size=atoms.positions.shape)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.05 * size * rng.normal(size=(3, 3))), scale_atoms=True)
    assert_same(atoms, kept, fresh)
