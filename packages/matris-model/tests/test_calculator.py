"""The calculator gives ASE what the model says, and leaves structures and models as they were."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.stress import full_3x3_to_voigt_6_stress

from janus_graph import build_graph
from janus_graph.ase import structure_from_ase
from matris_model import MatRISCalculator, MatRISMoE, save_model
from model_cases import TINY, stirred

ONE_TASK = stirred(TINY.replace(tasks=("only",)))


def crystal():
    atoms = bulk("NaCl", "rocksalt", a=5.3)
    atoms.rattle(0.1, seed=3)
    return atoms


def water():
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=1)
    return atoms


def with_calculator(atoms, **options):
    atoms.calc = MatRISCalculator(ONE_TASK, **options)
    return atoms


@pytest.mark.parametrize("make", [crystal, lambda: fcc111("Cu", (1, 1, 2), vacuum=5.0), water], ids=["3", "2", "0"])
def test_results_equal_what_the_model_says(make):
    atoms = with_calculator(make())
    graph = build_graph([structure_from_ase(atoms)], TINY.cutoff, TINY.near_cutoff)
    expected = ONE_TASK(graph, ("energy", "forces", "stress", "magmoms")).detach()
    assert atoms.get_potential_energy() == pytest.approx(float(expected.energy[0]), abs=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_forces(), graph.in_input_order(expected.forces), rtol=0, atol=1e-12)
    np.testing.assert_allclose(atoms.get_magnetic_moments(), graph.in_input_order(expected.magmoms), rtol=0, atol=1e-12)
    if atoms.pbc.all():
        voigt = full_3x3_to_voigt_6_stress(expected.stress[0].numpy())
        np.testing.assert_allclose(atoms.get_stress(), voigt, rtol=0, atol=1e-12)


def test_forces_are_finite_differences_of_the_energy():
    atoms = with_calculator(water())
    forces, step = atoms.get_forces(), 1e-4
    for atom in range(len(atoms)):
        for component in range(3):
            energies = []
            for sign in (1, -1):
                moved = with_calculator(water())
                moved.positions[atom, component] += sign * step
                energies.append(moved.get_potential_energy())
            assert forces[atom, component] == pytest.approx((energies[1] - energies[0]) / (2 * step), abs=1e-5)


def test_stress_is_finite_differences_of_the_energy():
    atoms = with_calculator(crystal())
    stress, volume, step = atoms.get_stress(voigt=False), atoms.get_volume(), 1e-5
    for row, column in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[row, column] += sign * step / 2
            strain[column, row] += sign * step / 2
            strained = with_calculator(crystal())
            strained.set_cell(strained.cell.array @ strain, scale_atoms=True)
            energies.append(strained.get_potential_energy())
        assert stress[row, column] == pytest.approx((energies[0] - energies[1]) / (2 * step * volume), abs=1e-6)


def test_the_callers_structure_is_not_changed():
    atoms = crystal()
    atoms.info["charge"] = 1
    atoms.positions += 30.0
    before = atoms.copy()
    atoms.calc = MatRISCalculator(ONE_TASK)
    atoms.get_forces()
    atoms.get_stress()
    assert atoms == before
    assert atoms.info == before.info
    assert set(atoms.arrays) == set(before.arrays)


def test_the_callers_model_is_not_changed():
    model = stirred(TINY.replace(tasks=("only",))).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    atoms = water()
    atoms.calc = MatRISCalculator(model, dtype=torch.float32)
    atoms.get_forces()
    assert model.dtype == torch.float64
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        model.energy_out.weight.mul_(2.0)
    frozen = atoms.get_potential_energy()
    atoms.positions += 1e-9
    assert atoms.get_potential_energy() == pytest.approx(frozen, abs=1e-4)


def test_a_path_and_a_model_give_the_same(tmp_path):
    save_model(ONE_TASK, tmp_path)
    for path in (tmp_path, str(tmp_path), tmp_path / "model.json"):
        atoms = water()
        atoms.calc = MatRISCalculator(path)
        assert atoms.get_potential_energy() == with_calculator(water()).get_potential_energy()
    with pytest.raises(ValueError, match="no model at"):
        MatRISCalculator(tmp_path / "nowhere")


@pytest.mark.parametrize("make", [water, lambda: fcc111("Cu", (1, 1, 2), vacuum=5.0)], ids=["molecule", "slab"])
def test_stress_of_what_does_not_repeat_in_three_directions_is_refused(make):
    atoms = with_calculator(make())
    with pytest.raises(PropertyNotImplementedError, match="repeats in three directions"):
        atoms.get_stress()
    assert np.isfinite(atoms.get_forces()).all()


def test_magnetic_moments_of_a_model_without_them_are_refused():
    atoms = water()
    atoms.calc = MatRISCalculator(MatRISMoE(TINY.replace(tasks=("only",), magnetic_moments=False)))
    with pytest.raises(PropertyNotImplementedError, match="without magnetic moments"):
        atoms.get_magnetic_moments()


def test_single_precision_agrees_with_double_to_its_precision():
    double, single = with_calculator(crystal()), with_calculator(crystal(), dtype=torch.float32)
    scale = 1 + np.abs(double.get_forces()).max()
    np.testing.assert_allclose(single.get_forces(), double.get_forces(), rtol=0, atol=1e-4 * scale)
    assert single.get_potential_energy() == pytest.approx(double.get_potential_energy(), abs=1e-4)
    assert not np.array_equal(single.get_forces(), double.get_forces())
    assert MatRISCalculator(ONE_TASK).model.dtype == torch.float64


def test_a_model_of_several_tasks_needs_to_be_told_which():
    model = stirred()
    with pytest.raises(ValueError, match="choose task= one of left, right"):
        MatRISCalculator(model)
    with pytest.raises(ValueError, match="no task 'up'; choose task= one of left, right"):
        MatRISCalculator(model, task="up")
    energies = []
    for task in model.config.tasks:
        atoms = water()
        atoms.calc = MatRISCalculator(model, task=task)
        energies.append(atoms.get_potential_energy())
    assert abs(energies[0] - energies[1]) > 1e-6


def test_elements_that_were_not_in_training_are_refused():
    atoms = water()
    atoms.calc = MatRISCalculator(stirred(TINY.replace(tasks=("only",), elements=(1, 6))))
    with pytest.raises(ValueError, match=r"not seen O in training; it knows H, C"):
        atoms.get_potential_energy()


@pytest.mark.parametrize(("name", "other"), [("charge", 1), ("spin", 3)])
def test_charge_and_spin_come_from_info_and_are_looked_at_again(name, other):
    atoms = with_calculator(water())
    neutral = atoms.get_potential_energy()
    atoms.info[name] = other
    changed = atoms.get_potential_energy()
    assert abs(changed - neutral) > 1e-6
    fresh = with_calculator(water())
    fresh.info[name] = other
    assert fresh.get_potential_energy() == changed
    del atoms.info[name]
    assert atoms.get_potential_energy() == neutral


def test_nothing_is_computed_twice_for_the_same_structure(monkeypatch):
    atoms = with_calculator(water())
    calls = []
    calculate = atoms.calc.calculate
    monkeypatch.setattr(atoms.calc, "calculate", lambda *a, **k: calls.append(1) or calculate(*a, **k))
    atoms.get_potential_energy()
    atoms.get_forces()
    atoms.get_potential_energy()
    assert len(calls) == 1


def test_dynamics_conserve_energy():
    # As it starts: stirred weights make a surface that is rough on the scale of a time step.
    atoms = water()
    atoms.calc = MatRISCalculator(MatRISMoE(TINY.replace(tasks=("only",))).double())
    atoms.set_velocities(np.random.default_rng(0).normal(scale=0.05, size=(3, 3)))
    potential, total = [], []
    dynamics = VelocityVerlet(atoms, timestep=0.05)
    dynamics.attach(lambda: potential.append(atoms.get_potential_energy()))
    dynamics.attach(lambda: total.append(atoms.get_total_energy()))
    dynamics.run(40)
    assert np.ptp(total) < 0.02 * np.ptp(potential)


def test_cells_relax_to_lower_energy():
    atoms = with_calculator(crystal())
    before = atoms.get_potential_energy()
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.01, steps=3)
    assert atoms.get_potential_energy() < before


def test_one_atom_alone_is_welcome():
    atoms = with_calculator(Atoms("O"))
    assert np.isfinite(atoms.get_potential_energy())
    assert not atoms.get_forces().any()
