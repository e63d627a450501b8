import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graph_strategies import batches, crystals, not_crystals, seeds, spaced_structures
from janus_graph import PROPERTIES, Properties, Structure, build_graph, conservative_properties, edge_vectors, volumes
from janus_graph.lennard_jones import LennardJones
from janus_graph.testing import check_conservative, sample_structures

EVERYTHING = ("energy", "forces", "stress")
CUTOFF = 4.0
STEP = float(np.finfo(np.float64).eps) ** (1 / 3)


@pytest.fixture(scope="module")
def potential():
    return LennardJones(epsilon=0.2, sigma=1.4, cutoff=CUTOFF)


def graph_of(drawn):
    return build_graph(drawn, CUTOFF, CUTOFF / 2)


def three_body_energy(graph):
    """Σ over pairs of near edges of (v_p · v_q)² with smooth ends, and a moment per atom: all that a model may do."""
    vectors = edge_vectors(graph)
    lengths = vectors.square().sum(dim=1).sqrt()
    end = (1 - (lengths / graph.near_cutoff).clamp(max=1.0) ** 2) ** 3
    tables = graph.near.spread((vectors * end[:, None])[graph.near.edges])
    energies = vectors.new_zeros(graph.structures)
    owners = graph.structure_index[graph.near.atoms].split([shape[0] for shape in graph.near.shapes])
    for rows, owner in zip(tables, owners, strict=True):
        energies = energies.index_add(0, owner, (rows @ rows.mT).square().sum(dim=(1, 2)))
    moments = graph.positions.square().sum(dim=1)
    return energies, moments


@given(drawn=spaced_structures())
def test_forces_and_stress_are_finite_differences_of_a_pair_energy(potential, drawn):
    check_conservative(potential, [drawn], potential.cutoff, potential.near_cutoff)


@given(drawn=spaced_structures())
def test_forces_and_stress_are_finite_differences_of_a_three_body_energy(drawn):
    def potential(graph, properties):
        return conservative_properties(three_body_energy, graph, properties)

    check_conservative(potential, [drawn], CUTOFF, 3.0)


@given(drawn=batches)
def test_forces_of_each_structure_add_up_to_zero(potential, drawn):
    graph = graph_of(drawn)
    forces = potential(graph, ("forces",)).forces
    total = torch.zeros(graph.structures, 3, dtype=torch.float64).index_add(0, graph.structure_index, forces)
    largest = float(forces.detach().abs().max())
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-13 * (1 + largest) * max(graph.edges, 1))


@given(drawn=spaced_structures(), seed=seeds)
def test_rotating_a_structure_rotates_its_forces_and_stress(potential, drawn, seed):
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    turned = dataclasses.replace(drawn, positions=drawn.positions @ rotation, cell=drawn.cell @ rotation)
    before, after = (potential(graph_of([structure]), EVERYTHING) for structure in (drawn, turned))
    matrix = torch.from_numpy(rotation)
    torch.testing.assert_close(after.energy, before.energy, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after.forces, before.forces @ matrix, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after.stress, matrix.T @ before.stress @ matrix, rtol=1e-9, atol=1e-9)


@given(drawn=crystals)
def test_stress_is_symmetric_and_its_trace_the_virial_of_the_pairs(potential, drawn):
    graph = graph_of([drawn])
    vectors = edge_vectors(graph).detach().requires_grad_()
    lengths = vectors.norm(dim=1)
    x = lengths / CUTOFF
    ratio = float(potential.sigma.detach()) / lengths
    energy = 2 * potential.epsilon.detach() * (ratio**12 - ratio**6) * (1 - 10 * x**3 + 15 * x**4 - 6 * x**5)
    (slope,) = torch.autograd.grad(energy.sum(), vectors)
    virial = (slope * vectors).sum() / volumes(graph)[0]
    stress = potential(graph, ("stress",)).stress[0]
    torch.testing.assert_close(stress, stress.T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(stress.trace(), virial.detach(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("spacing", "sign"), [(1.2, -1), (1.7, 1)])
def test_stress_is_negative_in_a_compressed_crystal_and_positive_in_a_stretched_one(potential, spacing, sign):
    crystal = Structure([18], np.zeros((1, 3)), spacing * np.eye(3), [True] * 3)
    diagonal = potential(graph_of([crystal]), ("stress",)).stress[0].diagonal()
    assert (sign * diagonal > 1e-3).all()


@given(drawn=st.lists(not_crystals, min_size=1, max_size=3))
def test_stress_is_zero_where_it_is_not_defined(potential, drawn):
    stress = potential(graph_of(drawn), ("stress",)).stress
    assert torch.equal(stress, torch.zeros(len(drawn), 3, 3, dtype=torch.float64))


@given(one=crystals, other=not_crystals)
def test_a_structure_without_a_volume_does_not_poison_a_loss_of_stress(potential, one, other):
    potential.zero_grad()
    potential(graph_of([one, other]), ("stress",)).stress.square().sum().backward()
    together = [parameter.grad.clone() for parameter in potential.parameters()]
    potential.zero_grad()
    potential(graph_of([one]), ("stress",)).stress.square().sum().backward()
    torch.testing.assert_close(together, [parameter.grad for parameter in potential.parameters()])


@given(drawn=batches, seed=seeds)
def test_gradients_of_a_force_and_stress_loss_are_finite_differences_of_it(potential, drawn, seed):
    graph = graph_of(drawn)
    rng = np.random.default_rng(seed)
    aim_forces, aim_stress = (torch.from_numpy(rng.normal(size=(n, 3))) for n in (graph.atoms, 3))

    def loss():
        values = potential(graph, EVERYTHING)
        return ((values.forces - aim_forces) ** 2).sum() + ((values.stress - aim_stress) ** 2).sum()

    potential.zero_grad()
    loss().backward()
    for parameter in potential.parameters():
        value = parameter.detach().clone()
        with torch.no_grad():
            plus, minus = (loss_at(parameter, value + change, loss) for change in (STEP, -STEP))
            parameter.copy_(value)
        expected = (plus - minus) / (2 * STEP)
        scale = 1 + abs(float(plus)) + abs(float(expected))
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-6 * scale)


def loss_at(parameter, value, loss):
    parameter.copy_(value)
    return loss()


@given(drawn=batches)
def test_without_gradients_the_values_are_the_same_and_have_no_history(potential, drawn):
    graph = graph_of(drawn)
    with_history = potential(graph, EVERYTHING)
    with torch.no_grad():
        plain = potential(graph, EVERYTHING)
    for name in EVERYTHING:
        value, expected = getattr(plain, name), getattr(with_history, name)
        assert not value.requires_grad
        assert expected.requires_grad
        torch.testing.assert_close(value, expected.detach(), rtol=0, atol=0)
    detached = with_history.detach()
    assert not any(getattr(detached, name).requires_grad for name in EVERYTHING)
    assert detached.magmoms is None


@pytest.mark.parametrize(
    "asked", [subset for n in range(5) for subset in itertools.combinations(PROPERTIES, n)], ids="+".join
)
def test_what_is_asked_together_does_not_change_any_value(asked):
    graph = graph_of(list(sample_structures().values()))
    everything = conservative_properties(three_body_energy, graph, PROPERTIES)
    values = conservative_properties(three_body_energy, graph, asked)
    torch.testing.assert_close(values.energy, everything.energy, rtol=1e-12, atol=1e-12)
    for name in ("forces", "stress", "magmoms"):
        if name in asked:
            torch.testing.assert_close(getattr(values, name), getattr(everything, name), rtol=1e-9, atol=1e-12)
        else:
            assert getattr(values, name) is None


@pytest.mark.parametrize("asked", [("energy",), EVERYTHING])
def test_the_graph_is_not_changed(potential, asked):
    graph = graph_of(list(sample_structures().values()))
    before = (graph.positions.clone(), graph.cells.clone())
    potential(graph, asked)
    assert torch.equal(graph.positions, before[0])
    assert torch.equal(graph.cells, before[1])
    assert not graph.positions.requires_grad


@pytest.mark.parametrize("name", ["one atom", "atoms out of reach"])
def test_isolated_atoms_feel_no_force(potential, name):
    structure = sample_structures()[name]
    values = potential(graph_of([structure]), EVERYTHING)
    assert torch.equal(values.forces, torch.zeros(len(structure), 3, dtype=torch.float64))
    assert not values.stress.any()
    assert not values.energy.any()
    values.forces.square().sum().backward()  # zero, and still something a loss can be made of


@pytest.mark.parametrize("gradients", [True, False])
def test_an_energy_that_depends_on_nothing_has_zero_derivatives(gradients):
    graph = graph_of(list(sample_structures().values()))
    with torch.set_grad_enabled(gradients):
        values = conservative_properties(lambda g: (torch.ones(g.structures).double(), None), graph, EVERYTHING)
    assert torch.equal(values.forces, torch.zeros_like(graph.positions))
    assert torch.equal(values.stress, torch.zeros_like(graph.cells))


@given(drawn=spaced_structures())
def test_hessians_are_finite_differences_of_forces_for_positions_that_require_a_gradient(potential, drawn):
    graph = graph_of([drawn])
    graph = graph.replace(positions=graph.positions.clone().requires_grad_())
    forces = potential(graph, EVERYTHING).forces.flatten()
    hessian = torch.stack([-torch.autograd.grad(f, graph.positions, retain_graph=True)[0].flatten() for f in forces])
    columns = []
    for unit in torch.eye(forces.numel(), dtype=torch.float64).reshape(-1, graph.atoms, 3):
        with torch.no_grad():
            plus, minus = (
                potential(graph.replace(positions=graph.positions.detach() + sign * STEP * unit), ("forces",)).forces
                for sign in (1, -1)
            )
        columns.append(-(plus - minus).flatten() / (2 * STEP))
    scale = 1 + float(hessian.abs().max())
    torch.testing.assert_close(hessian, torch.stack(columns, dim=1), rtol=0, atol=1e-7 * scale)
    torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("asked", [("hessian",), ("energy", "dipole", "force")])
def test_a_property_that_does_not_exist_is_named_with_those_that_do(potential, asked):
    with pytest.raises(ValueError, match=r"unknown properties \['(hessian|dipole', 'force)'\].*magmoms"):
        potential(graph_of([sample_structures()["metal"]]), asked)


@pytest.mark.parametrize("gradients", [True, False])
def test_magnetic_moments_of_a_potential_without_any_are_refused(potential, gradients):
    with torch.set_grad_enabled(gradients), pytest.raises(ValueError, match="no magnetic moments; leave 'magmoms' out"):
        potential(graph_of([sample_structures()["metal"]]), ("energy", "magmoms"))


def wrong(change):
    """A Lennard-Jones potential whose values are changed after they were computed."""
    right = LennardJones(epsilon=0.2, sigma=1.4, cutoff=CUTOFF)
    return lambda graph, properties: change(right(graph, properties), graph)


def changed(name, function):
    return lambda values, _: dataclasses.replace(
        values, **{name: None if (value := getattr(values, name)) is None else function(value)}
    )


def steps_at_the_cutoff(values, graph):
    """Every edge adds a constant, so the energy jumps when one comes or goes."""
    owner = graph.structure_index[graph.edge_index[0]]
    counts = torch.zeros(graph.structures, dtype=torch.float64).index_add(0, owner, torch.ones(graph.edges).double())
    return dataclasses.replace(values, energy=values.energy + counts)


AT_THE_CUTOFF = Structure([1, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, CUTOFF]], np.zeros((3, 3)), [False] * 3)
MOLECULE, CRYSTAL = sample_structures()["molecule"], sample_structures()["skewed cell"]


@pytest.mark.parametrize(
    ("change", "structure", "message"),
    [
        (changed("forces", lambda forces: forces * 1.0001), MOLECULE, "forces"),
        (changed("forces", lambda forces: -forces), CRYSTAL, "forces"),
        (changed("forces", lambda forces: forces * float("nan")), MOLECULE, "forces .* is nan"),
        (changed("forces", lambda forces: forces.roll(1, dims=0)), MOLECULE, "forces"),
        (changed("stress", lambda stress: -stress), CRYSTAL, "stress"),
        (changed("stress", lambda stress: stress * 1.0001), CRYSTAL, "stress"),
        (changed("stress", lambda stress: stress + 1e-6), MOLECULE, "must be zero"),
        (changed("energy", lambda energy: 2 * energy), CRYSTAL, "forces"),
        (steps_at_the_cutoff, AT_THE_CUTOFF, "forces"),
        (lambda values, _: Properties(values.energy, values.forces), CRYSTAL, "gave None"),
    ],
)
def test_the_check_fails_a_potential_that_is_not_conservative(change, structure, message):
    check_conservative(wrong(lambda values, _: values), [structure], CUTOFF, 2.0)
    with pytest.raises(AssertionError, match=message):
        check_conservative(wrong(change), [structure], CUTOFF, 2.0)
