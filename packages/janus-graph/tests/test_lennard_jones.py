import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graph_strategies import batches
from janus_graph import Structure, build_graph
from janus_graph.lennard_jones import LennardJones


def dimer(distance):
    return Structure([18, 18], [[0.0, 0.0, 0.0], [0.0, distance, 0.0]], np.zeros((3, 3)), [False] * 3)


def energy_of(potential, distance):
    graph = build_graph([dimer(distance)], potential.cutoff, potential.near_cutoff)
    return float(potential(graph, ("energy",)).energy.detach()[0])


@given(
    epsilon=st.floats(0.01, 2.0), sigma=st.floats(0.8, 2.0), distance=st.floats(1.0, 3.9), cutoff=st.floats(4.0, 6.0)
)
def test_two_atoms_have_the_energy_of_the_formula(epsilon, sigma, distance, cutoff):
    x = distance / cutoff
    expected = (
        4 * epsilon * ((sigma / distance) ** 12 - (sigma / distance) ** 6) * (1 - 10 * x**3 + 15 * x**4 - 6 * x**5)
    )
    found = energy_of(LennardJones(epsilon, sigma, cutoff), distance)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(epsilon=st.floats(0.01, 2.0), cutoff=st.floats(2.5, 6.0))
def test_value_slope_and_curvature_vanish_at_the_cutoff(epsilon, cutoff):
    potential = LennardJones(epsilon, 1.4, cutoff)
    # The envelope ends as 10 (1 − x)³, its derivatives as 30 (1 − x)² and 60 (1 − x), in units of the cutoff.
    size = 200 * 4 * epsilon * (1.4 / cutoff) ** 6
    for below in (1e-2, 1e-3, 1e-4):
        graph = build_graph([dimer(cutoff * (1 - below))], cutoff, cutoff)
        graph = graph.replace(positions=graph.positions.clone().requires_grad_())
        values = potential(graph, ("energy", "forces"))
        (curvature,) = torch.autograd.grad(values.forces[0, 1], graph.positions)
        values = values.detach()
        assert 0 < abs(float(values.energy[0])) < size * below**3
        assert 0 < abs(float(values.forces[0, 1])) < size * below**2
        assert 0 < abs(float(curvature[0, 1])) < size * below


@given(drawn=batches, longer=st.floats(0.0, 1.5))
def test_edges_beyond_the_cutoff_of_the_potential_add_nothing(drawn, longer):
    potential = LennardJones(0.2, 1.4, 3.0)
    fitting = potential(build_graph(drawn, 3.0, 1.5), ("energy", "forces"))
    wider = potential(build_graph(drawn, 3.0 + longer, 1.5), ("energy", "forces"))
    torch.testing.assert_close(wider.energy, fitting.energy, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(wider.forces, fitting.forces, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_energies_are_as_exact_as_the_parameters(dtype):
    potential = LennardJones(0.2, 1.4, 5.0)
    expected = energy_of(potential, 1.7)
    found = energy_of(potential.to(dtype), 1.7)
    assert found == pytest.approx(expected, rel=50 * torch.finfo(dtype).eps)
    assert math.isfinite(found)


def test_a_graph_with_a_shorter_cutoff_is_refused():
    with pytest.raises(ValueError, match=r"ends at 3\.0 Å and this potential at 4\.0 Å"):
        LennardJones(0.2, 1.4, 4.0)(build_graph([dimer(1.0)], 3.0, 2.0), ("energy",))


@pytest.mark.parametrize("name", ["epsilon", "sigma", "cutoff"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_parameters_that_are_not_above_zero_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        LennardJones(**{"epsilon": 1.0, "sigma": 1.0, "cutoff": 3.0, name: value})


def test_both_parameters_can_be_learned_back_from_forces():
    truth, learner = LennardJones(0.3, 1.5, 4.0), LennardJones(0.2, 1.4, 4.0)
    graph = build_graph([dimer(distance) for distance in np.linspace(1.5, 3.0, 6)], 4.0, 2.0)
    with torch.no_grad():
        labels = truth(graph, ("forces",)).forces
    optimizer = torch.optim.LBFGS(learner.parameters(), max_iter=60, tolerance_change=0, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (learner(graph, ("forces",)).forces - labels).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(learner.state_dict(), truth.state_dict(), rtol=1e-5, atol=0)
