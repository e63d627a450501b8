import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import eval_legendre, sph_harm_y

from janus_graph import Structure, build_graph, no_halo
from matris_model.basis import radial_basis
from matris_model.config import preset_config
from matris_model.density import DensityEmbedding
from matris_model.geometry import graph_geometry
from matris_model.harmonics import raising_coefficients, spherical_harmonics
from matris_model.model import MatRISMoE

CONFIG = preset_config("nano", density_channels=3, width=8, cutoff=4.0, near_cutoff=3.0)


def made(seed: int = 0) -> DensityEmbedding:
    torch.manual_seed(seed)
    density = DensityEmbedding(CONFIG).double()
    density.reset_parameters()
    return density


def cluster(positions, numbers) -> Structure:
    return Structure(np.array(numbers), np.array(positions, dtype=float), np.zeros((3, 3)), np.zeros(3, dtype=bool))


def seen(structures, density):
    graph = build_graph(structures, CONFIG.cutoff, CONFIG.near_cutoff)
    found = density.invariants(graph, graph_geometry(graph, CONFIG, torch.float64, no_halo))
    return graph.in_input_order(found)


def by_loops(structure: Structure, density: DensityEmbedding) -> torch.Tensor:
    """Every neighbour, channel and harmonic one by one, with harmonics of scipy; products of three of plain vectors."""
    rows, mix, three = [], density.mix.detach().numpy(), density.mix_of_three.detach().numpy()
    for i in range(len(structure)):
        sums: dict[tuple[int, int, int], complex] = {}
        v, q = np.zeros((3, 3)), np.zeros((3, 3, 3))
        for j in range(len(structure)):
            vector = structure.positions[j] - structure.positions[i]
            distance = np.linalg.norm(vector)
            if i == j or distance >= CONFIG.cutoff:
                continue
            basis = radial_basis(torch.tensor([distance]), CONFIG.cutoff, CONFIG.radial_functions)[0]
            of_element = density.neighbour[structure.atomic_numbers[j]]
            polar, azimuth = math.acos(vector[2] / distance), math.atan2(vector[1], vector[0])
            for n in range(3):
                radial = float(density.radial.weight[n] @ basis * of_element[n])
                unit = vector / distance
                v[n] += radial * unit / 4
                q[n] += radial * (3 * np.outer(unit, unit) - np.eye(3)) / 4
                for degree in range(CONFIG.density_degrees):
                    for m in range(-degree, degree + 1):
                        harmonic = math.sqrt(4 * math.pi) * sph_harm_y(degree, m, polar, azimuth)
                        sums[n, degree, m] = sums.get((n, degree, m), 0) + radial * harmonic / 4
        row = [sums.get((n, 0, 0), 0).real for n in range(3)]
        for degree in range(CONFIG.density_degrees):
            for n in range(3):
                mixed = [
                    sum(mix[degree, k, n] * sums.get((k, degree, m), 0) for k in range(3))
                    for m in range(-degree, degree + 1)
                ]
                own = [sums.get((n, degree, m), 0) for m in range(-degree, degree + 1)]
                power = sum(complex(a).conjugate() * b for a, b in zip(own, mixed, strict=True))
                row.append(complex(power).real / math.sqrt(2 * degree + 1))
        mixed_v, second, third = (
            np.einsum("k...,kn->n...", *pair) for pair in ((v, three[0]), (q, three[1]), (q, three[2]))
        )
        row += [v[n] @ q[n] @ mixed_v[n] for n in range(3)]
        row += [np.trace(q[n] @ second[n] @ third[n]) / 3 for n in range(3)]
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64).reshape(len(structure), -1)


@given(st.integers(1, 6), st.integers(0, 50))
def test_invariants_are_those_of_a_double_loop_with_harmonics_of_another_library(atoms: int, seed: int):
    random = np.random.default_rng(seed)
    structure = cluster(random.uniform(0, 4, (atoms, 3)), random.choice([1, 8, 26], atoms))
    density = made(seed)
    torch.testing.assert_close(seen([structure], density), by_loops(structure, density), rtol=1e-9, atol=1e-9)


def harmonics(units: np.ndarray, degrees: int) -> torch.Tensor:
    return spherical_harmonics(torch.from_numpy(units), [torch.from_numpy(c) for c in raising_coefficients(degrees)])


@pytest.mark.parametrize("degrees", [2, 3, 8])
def test_harmonics_have_a_mean_square_of_one_and_are_orthogonal(degrees: int):
    # Gauss-Legendre in the cosine and even angles: exact for products of two of degree 7.
    cosines, weights = np.polynomial.legendre.leggauss(8)
    angles = np.arange(16) * 2 * np.pi / 16
    sines = np.sqrt(1 - cosines**2)
    units = np.stack([np.outer(sines, np.cos(angles)), np.outer(sines, np.sin(angles)), np.outer(cosines, np.ones(16))])
    values = harmonics(units.reshape(3, -1).T, degrees)
    of_point = torch.from_numpy(np.repeat(weights / 32, 16))
    torch.testing.assert_close((values * of_point[:, None]).T @ values, torch.eye(degrees**2, dtype=torch.float64))


@given(st.integers(0, 100))
def test_products_of_harmonics_of_a_degree_are_its_legendre_polynomial_of_the_angle_between(seed: int):
    units = np.random.default_rng(seed).normal(size=(4, 3))
    units = np.concatenate([units / np.linalg.norm(units, axis=1, keepdims=True), [[0, 0, 1], [0, 0, -1]]])
    values = harmonics(units, 8).numpy()
    for degree in range(8):
        own = values[:, degree**2 : (degree + 1) ** 2]
        expected = (2 * degree + 1) * eval_legendre(degree, units @ units.T)
        np.testing.assert_allclose(own @ own.T, expected, atol=1e-13 * (2 * degree + 1) ** 2)


def test_fewer_degrees_than_products_of_three_need_are_refused():
    with pytest.raises(ValueError, match="density_degrees = 2 must be at least 3"):
        preset_config("nano", density_degrees=2)


def test_a_missing_neighbour_shows_in_the_sums_by_its_share():
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    density = made()
    whole, missing = (
        seen([cluster([[0, 0, 0], *corners[:count]], [14] * (count + 1))], density)[0, :3] for count in (4, 3)
    )
    torch.testing.assert_close(missing, whole * 3 / 4)


def test_after_calibration_the_elements_of_the_batch_have_no_mean_and_unit_spread():
    random = np.random.default_rng(1)
    structures = [cluster(random.uniform(0, 12, (600, 3)), random.choice([1, 8], 600))]
    model = MatRISMoE(CONFIG).double()
    graph = build_graph(structures, CONFIG.cutoff, CONFIG.near_cutoff)
    model.calibrate(graph)
    density = model.density
    found = density.invariants(graph, graph_geometry(graph, CONFIG, torch.float64, no_halo))
    for number in (1, 8):
        known = (found[graph.atomic_numbers == number] - density.centre[number]) / density.spread[number]
        # Each element's own count for some 300 to 10 of all of them.
        assert known.mean(dim=0).abs().max() < 0.05
        assert (known.std(dim=0, unbiased=False) - 1).abs().max() < 0.05
    torch.testing.assert_close(density.centre[26], found.mean(dim=0))
    torch.testing.assert_close(density.spread[26], found.std(dim=0, unbiased=False).clamp(min=1e-2))


@pytest.mark.parametrize("calibrated", [False, True])
def test_an_atom_alone_has_nothing_around_it_and_finite_features(calibrated: bool):
    model = MatRISMoE(CONFIG).double()
    graph = build_graph([cluster([[0, 0, 0]], [3])], CONFIG.cutoff, CONFIG.near_cutoff)
    if calibrated:
        model.calibrate(graph)
    geometry = graph_geometry(graph, CONFIG, torch.float64, no_halo)
    assert not model.density.invariants(graph, geometry).any()
    assert model(graph, ("energy", "forces")).energy.isfinite().all()
