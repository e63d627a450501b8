"""Physical quantities of potentials whose answers are known: by formula, by brute force, or by a law."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.morse import MorsePotential
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS
from ase.units import GPa, _amu, _e
from hypothesis import given
from hypothesis import strategies as st

from janus_train.physics import (
    constant_energy_run,
    dimer_curve,
    elastic_constants,
    equation_of_state,
    fit_birch_murnaghan,
    phonon_bands,
    relax,
)
from janus_train.physics.dimer import dimer_distances

THZ = np.sqrt(_e / _amu) * 1e10 / (2 * np.pi) / 1e12  # of √(eV/Å²/u)


class Springs(Calculator):
    """Harmonic springs of constant k to the nearest neighbours, at rest at `length` (Å)."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, k: float, length: float) -> None:
        super().__init__()
        self.k, self.length = k, length

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        i, vectors, r = neighbor_list("iDd", self.atoms, 1.2 * self.length)
        pull = (self.k * (r - self.length) / r)[:, None] * vectors
        forces = np.zeros((len(self.atoms), 3))
        np.add.at(forces, i, pull)
        self.results = {"energy": float(0.25 * self.k * ((r - self.length) ** 2).sum()), "forces": forces}
        if self.atoms.pbc.all():
            s = 0.5 * np.einsum("ka,kb->ab", pull, vectors) / self.atoms.get_volume()
            self.results["stress"] = s[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


class Formula(Calculator):
    """A pair of atoms along z whose energy is a function of the distance, with its slope by finite differences."""

    implemented_properties = ("energy", "forces")

    def __init__(self, energy) -> None:
        super().__init__()
        self.energy = energy

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        r, step = float(self.atoms.get_distance(0, 1)), 1e-5
        slope = (self.energy(r + step) - self.energy(r - step)) / (2 * step)
        self.results = {"energy": float(self.energy(r)), "forces": np.array([[0, 0, slope], [0, 0, -slope]])}


# --- dimers


def test_the_curve_of_a_morse_pair_is_the_formula():
    potential = MorsePotential(epsilon=2.0, r0=1.5, rho0=6.0, rcut1=9.0, rcut2=10.0)
    curve = dimer_curve(potential, ("N", "N"), np.linspace(1.0, 8.0, 701))

    def energy(r):
        x = np.exp(-6.0 * (r / 1.5 - 1))
        return 2.0 * (x**2 - 2 * x)

    expected = energy(curve.distances)
    np.testing.assert_allclose(curve.energies, expected - expected[-1], atol=1e-9)
    step = 1e-6
    slope = (energy(curve.distances + step) - energy(curve.distances - step)) / (2 * step)
    np.testing.assert_allclose(curve.forces, -slope, atol=1e-5)
    assert curve.bond_length == pytest.approx(1.5, abs=0.006)
    assert curve.depth == pytest.approx(2.0, abs=1e-6)
    assert (curve.hole_below, curve.turns) == (None, 1)
    assert curve.tortuosity == pytest.approx(1.0, abs=1e-9)


def test_atoms_that_fall_into_each_other_are_a_hole():
    wall = Formula(lambda r: 1 / r**6)
    hole = Formula(lambda r: 1 / r**6 - 40 * np.exp(-(((r - 0.5) / 0.12) ** 2)) / 0.5**6)
    distances = dimer_distances(("N", "N"), 6.0)
    assert dimer_curve(wall, ("N", "N"), distances).hole_below is None
    found = dimer_curve(hole, ("N", "N"), distances).hole_below
    assert 0.5 < found < 0.85


def test_ripples_are_counted_and_make_the_curve_longer():
    smooth = dimer_curve(Formula(lambda r: (r - 2) ** 2), ("Cu", "Cu"), np.linspace(1.5, 4, 200))
    rippled = dimer_curve(Formula(lambda r: (r - 2) ** 2 + 0.3 * np.cos(9 * r)), ("Cu", "Cu"), np.linspace(1.5, 4, 200))
    assert smooth.turns == 1
    assert rippled.turns > 3
    assert rippled.tortuosity > 1.2 > 1.0001 > smooth.tortuosity >= 1


def test_a_pair_without_interaction_is_no_bond():
    curve = dimer_curve(Formula(lambda r: 7.0), ("H", "O"), np.linspace(0.5, 5, 9))
    assert (curve.bond_length, curve.depth, curve.turns, curve.tortuosity) == (None, 0.0, 0, 1.0)


# --- equation of state


@given(st.floats(5, 60), st.floats(-2000, 10), st.floats(0.02, 3), st.floats(2.5, 6.5), st.floats(-0.02, 0.02))
def test_the_fit_gives_back_the_numbers_of_a_birch_murnaghan_curve(v0, e0, b0, b1, shift):
    volumes = v0 * (1 + shift) * np.linspace(0.92, 1.08, 9)
    x = (v0 / volumes) ** (2 / 3)
    energies = e0 + 9 * v0 * b0 / 16 * ((x - 1) ** 3 * b1 + (x - 1) ** 2 * (6 - 4 * x))
    fit = fit_birch_murnaghan(volumes, energies)
    # What rounding of the energies does: their size over the depth of the curve.
    noise = 1e3 * np.finfo(float).eps * (1 + abs(e0) / (v0 * b0 * 0.08**2))
    assert fit.volume == pytest.approx(v0, rel=noise)
    assert fit.energy == pytest.approx(e0, abs=noise * (1 + abs(e0)))
    assert fit.bulk_modulus == pytest.approx(b0, rel=100 * noise)
    assert fit.derivative == pytest.approx(b1, rel=1e4 * noise)
    assert fit.residual < noise * (1 + abs(e0))


@pytest.mark.parametrize("shift", [0.85, 1.15])
def test_a_curve_without_a_minimum_has_no_equation_of_state(shift):
    volumes = 20 * shift * np.linspace(0.95, 1.05, 9)
    with pytest.raises(ValueError, match="no minimum of the energy between"):
        fit_birch_murnaghan(volumes, (volumes - 20) ** 2)
    with pytest.raises(ValueError, match="at least five"):
        fit_birch_murnaghan(volumes[:4], (volumes[:4] - 20) ** 2)


def test_the_bulk_modulus_of_springs_is_that_of_the_textbook():
    # fcc with springs: E = 3 k (d − d0)² an atom and V = d³/√2, so B = V E'' = 2√2 k / (3 d).
    k, length = 2.0, 2.5
    crystal = bulk("Cu", "fcc", a=1.003 * np.sqrt(2) * length)
    found = equation_of_state(Springs(k, length), crystal, span=0.03)
    assert found.volume == pytest.approx(length**3 / np.sqrt(2), rel=1e-4)
    assert found.bulk_modulus == pytest.approx(2 * np.sqrt(2) * k / (3 * length) / GPa, rel=5e-3)
    assert np.all(np.diff(found.volumes) > 0)


def test_atoms_follow_the_cell_where_they_may():
    strained = bulk("Cu", cubic=True, a=3.6)
    strained.rattle(0.05, seed=1)
    free = equation_of_state(EMT(), strained)
    clamped = equation_of_state(EMT(), strained, relax_positions=False)
    assert free.energy < clamped.energy - 1e-3
    assert free.volume == pytest.approx(equation_of_state(EMT(), bulk("Cu", a=3.6)).volume, rel=1e-4)


def test_what_is_no_crystal_has_no_equation_of_state_and_no_elastic_constants_and_no_phonons():
    for quantity in (equation_of_state, elastic_constants, phonon_bands):
        with pytest.raises(ValueError, match="crystal"):
            quantity(EMT(), molecule("N2"))


# --- elastic constants


def curvature(calculator, atoms, strain, step=0.004):
    """Second derivative of the energy density along a strain, the atoms relaxed: no stress, no force constants."""
    energies = []
    for size in (-step, 0.0, step):
        moved = atoms.copy()
        moved.set_cell(atoms.cell.array @ (np.eye(3) + size * strain), scale_atoms=True)
        moved.calc = calculator
        if len(moved) > 1:
            BFGS(moved, logfile=None).run(fmax=1e-5, steps=100)
        energies.append(moved.get_potential_energy())
    return (energies[0] - 2 * energies[1] + energies[2]) / step**2 / atoms.get_volume() / GPa


def unit_strain(*places):
    strain = np.zeros((3, 3))
    for row, column in places:
        strain[row, column] += 0.5
        strain[column, row] += 0.5
    return strain


def test_elastic_constants_are_the_curvature_of_the_energy():
    copper = relax(EMT(), bulk("Cu", a=3.6), fmax=1e-5).atoms
    found = elastic_constants(EMT(), copper, strain=0.002)
    along, pair, shear = unit_strain((0, 0)), unit_strain((0, 0), (1, 1)), unit_strain((1, 2))
    c11 = curvature(EMT(), copper, along)
    c12 = curvature(EMT(), copper, pair) / 2 - c11
    c44 = curvature(EMT(), copper, shear)
    np.testing.assert_allclose(found.cubic, (c11, c12, c44), rtol=0.01)
    assert found.stable
    assert found.bulk_modulus == pytest.approx((c11 + 2 * c12) / 3, rel=0.01)
    assert found.residual_stress < 1e-3
    assert found.asymmetry < 1e-2


def test_the_bulk_modulus_is_that_of_the_equation_of_state():
    copper = relax(EMT(), bulk("Cu", a=3.6), fmax=1e-5).atoms
    elastic, state = elastic_constants(EMT(), copper), equation_of_state(EMT(), copper)
    assert elastic.bulk_modulus == pytest.approx(state.bulk_modulus, rel=0.01)


def test_atoms_inside_the_cell_follow_a_strain():
    """hcp: sublattices slide under a shear of the basal plane, and make it softer; the energy says by how much."""
    slipping = relax(EMT(), bulk("Cu", "hcp", a=2.55, c=4.16), fmax=1e-5).atoms
    found = elastic_constants(EMT(), slipping, strain=0.002)
    for place, strain in ((0, unit_strain((0, 0))), (2, unit_strain((2, 2))), (5, unit_strain((0, 1)))):
        assert found.matrix[place, place] == pytest.approx(curvature(EMT(), slipping, strain), rel=0.02)
    assert found.clamped[5, 5] > 1.05 * found.matrix[5, 5]
    assert found.matrix[0, 0] == pytest.approx(found.matrix[1, 1], rel=0.01)
    assert found.cubic is None


def test_cell_and_atoms_of_the_caller_stay_as_they_were():
    copper = bulk("Cu", cubic=True, a=3.6)
    before = copper.copy()
    elastic_constants(EMT(), copper)
    equation_of_state(EMT(), copper)
    relax(EMT(), copper)
    constant_energy_run(EMT(), copper, 0.01)
    assert copper == before
    assert copper.calc is None


def test_a_crystal_that_a_strain_makes_cheaper_is_not_stable():
    squeezed = bulk("Cu", "bcc", a=2.85)  # EMT copper in bcc: soft against a tetragonal strain
    found = elastic_constants(EMT(), relax(EMT(), squeezed, fmax=1e-4).atoms)
    assert not found.stable
    assert np.linalg.eigvalsh(found.matrix).min() < 0


# --- phonons


def test_phonons_of_springs_are_those_of_the_textbook():
    """fcc with springs between nearest neighbours: at X, ω² = 8k/m longitudinal and 4k/m transverse."""
    pytest.importorskip("phonopy")
    k, length = 2.0, 2.5
    crystal = bulk("Cu", "fcc", a=np.sqrt(2) * length)
    found = phonon_bands(Springs(k, length), crystal, displacement=1e-3)
    mass = crystal.get_masses()[0]
    x = found.corners[found.labels.index("X")]
    modes = found.frequencies[np.argmin(np.abs(found.along - x))]
    expected = np.sqrt(np.array([4, 4, 8]) * k / mass) * THZ
    np.testing.assert_allclose(modes, expected, rtol=2e-3)
    assert found.acoustic < 1e-3 * found.highest
    assert found.lowest > -1e-3 * found.highest
    assert found.highest == pytest.approx(expected[-1], rel=2e-3)
    assert (found.atoms, found.frequencies.shape[1]) == (1, 3)


def test_phonons_of_a_rattled_conventional_cell_are_those_of_the_primitive_one():
    pytest.importorskip("phonopy")
    primitive = relax(EMT(), bulk("Cu", a=3.6)).atoms
    start = bulk("Cu", a=3.6, cubic=True)
    start.rattle(0.02, seed=0)
    found, expected = phonon_bands(EMT(), relax(EMT(), start).atoms), phonon_bands(EMT(), primitive)
    assert found.atoms == 1
    assert found.highest == pytest.approx(expected.highest, rel=0.01)
    assert found.supercell_atoms > 27


def test_an_unstable_crystal_has_imaginary_phonons():
    pytest.importorskip("phonopy")
    assert phonon_bands(EMT(), relax(EMT(), bulk("Cu", "bcc", a=2.85)).atoms).lowest < -0.3


# --- dynamics


def test_springs_keep_their_energy_and_swing_at_half_the_starting_temperature():
    crystal = bulk("Cu", "fcc", a=np.sqrt(2) * 2.5, cubic=True) * (2, 2, 2)
    found = constant_energy_run(Springs(2.0, 2.5), crystal, 0.5, timestep=1.0, temperature=100.0)
    assert abs(found.drift) < 0.05
    assert found.fluctuation < 0.1
    assert 25 < found.temperature < 75
    assert (found.energies[0], found.atoms) == (0.0, 32)
    assert found.times[-1] == pytest.approx(0.5)


def test_a_force_that_is_not_the_slope_of_the_energy_drifts():
    class Leaking(LennardJones):
        def calculate(self, *arguments, **named):
            super().calculate(*arguments, **named)
            self.results["forces"] = self.results["forces"] + 0.3 * self.atoms.get_velocities()

    cluster = Atoms("Ar4", positions=3.8 * np.array([[0, 0, 0], [1, 0, 0], [0.5, 0.87, 0], [0.5, 0.29, 0.8]]))
    options = {"sigma": 3.4, "epsilon": 0.0104, "rc": 12.0}
    sound = constant_energy_run(LennardJones(**options), cluster, 0.5, temperature=50.0)
    leaking = constant_energy_run(Leaking(**options), cluster, 0.5, temperature=50.0)
    assert abs(sound.drift) < 0.01
    assert leaking.drift > 10 * abs(sound.drift)
    assert leaking.drift > 0.1


def test_the_same_seed_gives_the_same_run_and_another_time_step_is_seen():
    crystal = bulk("Cu", a=3.6, cubic=True)
    runs = [constant_energy_run(EMT(), crystal, 0.05, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(runs[0].energies, runs[1].energies)
    assert not np.array_equal(runs[0].energies, runs[2].energies)
    coarse = constant_energy_run(EMT(), crystal, 0.05, timestep=5.0)
    assert coarse.fluctuation > 4 * runs[0].fluctuation


def test_no_time_has_no_drift_and_an_explosion_is_an_error():
    with pytest.raises(ValueError, match="at least two"):
        constant_energy_run(EMT(), bulk("Cu"), 0.001)
    close = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 0.6]])
    with pytest.raises(RuntimeError, match="blew up"):
        constant_energy_run(LennardJones(sigma=3.4, epsilon=0.01, rc=12.0), close, 1.0, timestep=1.0)


# --- relaxation


def test_positions_and_cell_relax_and_the_end_is_a_minimum():
    start = bulk("Cu", a=3.7, cubic=True)
    start.rattle(0.1, seed=2)
    found = relax(EMT(), start)
    assert found.converged
    assert found.largest_force < 0.005
    assert found.volume == pytest.approx(relax(EMT(), bulk("Cu", a=3.6)).volume, rel=2e-3)
    assert found.volume_change == pytest.approx(found.volume * 4 / start.get_volume() - 1)
    assert relax(EMT(), molecule("N2")).volume is None
    assert not relax(EMT(), start, steps=1).converged


def test_a_cell_without_a_minimum_is_an_error():
    class Pushing(EMT):
        def calculate(self, *arguments, **named):
            super().calculate(*arguments, **named)
            self.results["stress"] = self.results["stress"] - 5.0 * np.array([1, 1, 1, 0, 0, 0])

    with pytest.raises(RuntimeError, match="no minimum is near"):
        relax(Pushing(), bulk("Cu"))
