"""In torch-sim the potential says of every system of a batch what the calculator says of it alone."""

import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

ts = pytest.importorskip("torch_sim", reason="torch-sim is not installed: pip install 'matris-model[torch-sim]'")

from torch_sim.models.interface import validate_model_outputs  # noqa: E402

from matris_model import MatRISCalculator, MatRISMoE, save_model  # noqa: E402
from matris_model.torch_sim import MatRISTorchSimModel, structures_of_state  # noqa: E402
from model_cases import TINY, stirred  # noqa: E402

ONE_TASK = stirred(TINY.replace(tasks=("only",)))
# torch-sim 0.6 has its optimisers and integrators as members of two enumerations.
FIRE = ts.Optimizer.fire if hasattr(ts, "Optimizer") else ts.optimizers.fire
FRECHET = ts.Optimizer.fire if hasattr(ts, "Optimizer") else ts.frechet_cell_fire
NVE = ts.Integrator.nve if hasattr(ts, "Integrator") else ts.nve


def crystals() -> list[Atoms]:
    """Crystals of one, two and eight atoms, of which no two have the same cell."""
    found = [bulk("Cu", a=3.5), bulk("NaCl", "rocksalt", a=5.3), bulk("Si", "diamond", a=5.2, cubic=True)]
    for seed, atoms in enumerate(found):
        strain = np.eye(3) + 0.03 * np.random.default_rng(seed).normal(size=(3, 3))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.rattle(0.05, seed=seed)
    return found


def smooth(**changes) -> MatRISMoE:
    """Weights as they start: the stirred surface is rough on the scale of a time step."""
    return MatRISMoE(TINY.replace(tasks=("only",), **changes)).double()


def state_of(systems, model):
    return ts.initialize_state(systems, model.device, model.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("state_dtype", [torch.float64, torch.float32], ids=str)
def test_a_batch_equals_the_calculator_system_by_system(dtype, state_dtype):
    model = MatRISTorchSimModel(ONE_TASK, dtype=dtype, state_dtype=state_dtype)
    systems = crystals()
    found = model(state_of(systems, model))
    assert all(values.dtype == state_dtype for values in found.values())
    forces = np.split(found["forces"].numpy(), np.cumsum([len(atoms) for atoms in systems])[:-1])
    # A float32 state rounds the coordinates too, by up to half a unit in the last place of some 5 Å.
    epsilon = max(torch.finfo(dtype).eps, torch.finfo(state_dtype).eps)
    for place, atoms in enumerate(systems):
        atoms.calc = MatRISCalculator(ONE_TASK, dtype=dtype)
        scale = 1000 * epsilon * (1 + np.abs(atoms.get_forces()).max() + abs(atoms.get_potential_energy()))
        assert float(found["energy"][place]) == pytest.approx(atoms.get_potential_energy(), abs=scale)
        np.testing.assert_allclose(forces[place], atoms.get_forces(), rtol=0, atol=scale)
        np.testing.assert_allclose(found["stress"][place], atoms.get_stress(voigt=False), rtol=0, atol=scale)


def test_molecules_have_forces_and_no_stress():
    systems = [molecule("H2O"), molecule("CH4")]
    for atoms in systems:
        atoms.rattle(0.05, seed=1)
    model = MatRISTorchSimModel(ONE_TASK)
    found = model(state_of(systems, model))
    for atoms in systems:
        atoms.calc = MatRISCalculator(ONE_TASK)
    expected = np.concatenate([atoms.get_forces() for atoms in systems])
    np.testing.assert_allclose(found["forces"], expected, rtol=0, atol=1e-10)
    assert not found["stress"].any()


def test_stress_is_left_out_where_it_is_not_wanted():
    model = MatRISTorchSimModel(ONE_TASK, compute_stress=False)
    assert set(model(state_of(crystals(), model))) == {"energy", "forces"}
    assert (model.compute_stress, model.compute_forces) == (False, True)


def test_what_torch_sim_asks_of_a_model_holds():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        validate_model_outputs(MatRISTorchSimModel(smooth()), torch.device("cpu"), torch.float64)


def test_a_dictionary_of_fields_does_as_well_as_a_state_and_neither_is_changed():
    model = MatRISTorchSimModel(ONE_TASK)
    state = state_of(crystals(), model)
    fields = {name: getattr(state, name) for name in ("positions", "cell", "pbc", "atomic_numbers", "system_idx")}
    before = {name: torch.as_tensor(value).clone() for name, value in fields.items()}
    expected, found = model(state), model(fields)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(torch.equal(torch.as_tensor(fields[name]), before[name]) for name in fields)
    single = {name: value for name, value in fields.items() if name != "system_idx"}
    single["cell"] = single["cell"][:1]
    assert model(single)["energy"].shape == (1,)


def test_charges_and_spins_come_with_the_state():
    fields = {
        "positions": torch.zeros(2, 3), "cell": torch.eye(3).repeat(2, 1, 1), "pbc": False,
        "atomic_numbers": torch.tensor([8, 8]), "system_idx": torch.tensor([0, 1]),
    }  # fmt: skip
    assert [(s.charge, s.spin) for s in structures_of_state(fields)] == [(0, 1), (0, 1)]
    labelled = fields | {"charge": torch.tensor([1.0, -1.0]), "spin": torch.tensor([2.0, 1.0])}
    assert [(s.charge, s.spin) for s in structures_of_state(labelled)] == [(1, 2), (-1, 1)]
    energies = MatRISTorchSimModel(ONE_TASK)(labelled)["energy"]
    assert abs(float(energies[0] - energies[1])) > 1e-6


def test_mixed_periodicity_and_cells_whose_rows_are_not_columns_are_kept():
    cell = torch.arange(9.0).reshape(1, 3, 3) + 10 * torch.eye(3)
    fields = {"positions": torch.zeros(1, 3), "cell": cell, "pbc": torch.tensor([True, True, False]),
              "atomic_numbers": torch.tensor([8])}  # fmt: skip
    (structure,) = structures_of_state(fields)
    assert structure.periodic.tolist() == [True, True, False]
    np.testing.assert_array_equal(structure.cell, cell[0].T)


def test_tasks_and_elements_are_checked(tmp_path):
    save_model(stirred(TINY.replace(elements=(1, 8))), tmp_path)
    with pytest.raises(ValueError, match="choose task= one of left, right"):
        MatRISTorchSimModel(tmp_path)
    model = MatRISTorchSimModel(tmp_path, task="right")
    with pytest.raises(ValueError, match="not seen Cu"):
        model(state_of([bulk("Cu")], model))


def test_a_batch_relaxes_to_lower_energies_and_smaller_forces():
    systems = [molecule("H2O"), molecule("CH4"), molecule("NH3")]
    for seed, atoms in enumerate(systems):
        atoms.rattle(0.1, seed=seed)
    model = MatRISTorchSimModel(smooth())
    start = model(state_of(systems, model))
    relaxed = ts.optimize(systems, model, optimizer=FIRE, max_steps=60)
    assert (relaxed.energy < start["energy"]).all()
    assert float(relaxed.forces.norm(dim=1).max()) < float(start["forces"].norm(dim=1).max())


def test_cells_relax_in_a_batch():
    model = MatRISTorchSimModel(smooth())
    systems = crystals()[:2]
    start = model(state_of(systems, model))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*max steps")  # ten need not be enough
        relaxed = ts.optimize(systems, model, optimizer=FRECHET, max_steps=10)
    assert (relaxed.energy < start["energy"]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_dynamics_of_a_batch_conserve_the_energy_of_every_system(dtype):
    model = MatRISTorchSimModel(smooth(), dtype=dtype, compute_stress=False)
    systems = [molecule("CH4"), molecule("NH3")]
    state = state_of(systems, model)
    kinetic_of, initialise, step = _nve(model)
    state = initialise(state)
    potential, total = [state.energy.clone()], [state.energy + kinetic_of(state)]
    for _ in range(40):
        state = step(state)
        potential.append(state.energy.clone())
        total.append(state.energy + kinetic_of(state))
    spread = torch.stack(total).max(0).values - torch.stack(total).min(0).values
    exchanged = torch.stack(potential).max(0).values - torch.stack(potential).min(0).values
    assert (spread < 0.05 * exchanged).all()


def _nve(model):
    """Kinetic energies, start and step of velocity Verlet, in either form that torch-sim gives them."""
    dt, kT = torch.tensor(0.03, dtype=model.dtype), torch.tensor(0.05, dtype=model.dtype)  # 0.3 fs, 580 K

    def kinetic(state):
        return ts.calc_kinetic_energy(momenta=state.momenta, masses=state.masses, system_idx=state.system_idx)

    if hasattr(ts, "nve_init"):  # 0.4 and later
        return kinetic, lambda s: ts.nve_init(s, model, kT=kT), lambda s: ts.nve_step(s, model, dt=dt)
    start, update = ts.nve(model, dt=dt, kT=kT, seed=0)
    return kinetic, start, update
