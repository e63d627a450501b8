"""Basis functions against closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matris_model.basis import envelope, legendre, radial_basis

cutoffs = st.floats(0.5, 12.0)


def derivatives_at(function, place):
    x = torch.tensor(place, dtype=torch.float64, requires_grad=True)
    values = [function(x)]
    for _ in range(2):
        values.append(torch.autograd.grad(values[-1], x, create_graph=True)[0])
    return [float(value.detach()) for value in values]


@given(cutoffs)
def test_envelope_is_one_and_flat_at_zero_and_gone_to_second_order_at_the_cutoff(cutoff):
    at_zero = derivatives_at(lambda x: envelope(x, cutoff), 0.0)
    assert at_zero == pytest.approx([1, 0, 0], abs=1e-13 / min(cutoff, 1) ** 2)
    just_inside = cutoff * (1 - 1e-9)
    assert derivatives_at(lambda x: envelope(x, cutoff), just_inside) == pytest.approx([0, 0, 0], abs=1e-6 / cutoff**2)
    assert derivatives_at(lambda x: envelope(x, cutoff), 1.5 * cutoff) == pytest.approx([0, 0, 0], abs=1e-12)


@given(cutoffs, st.floats(0.0, 1.0))
def test_envelope_falls_and_equals_its_polynomial(cutoff, u):
    values = envelope(torch.tensor([u * cutoff, u * cutoff + 1e-3], dtype=torch.float64), cutoff)
    assert float(values[0]) == pytest.approx((1 - u) ** 3 * (1 + 3 * u + 6 * u * u), abs=1e-12)
    assert float(values[1]) <= float(values[0])


@given(cutoffs, st.integers(1, 20), st.lists(st.floats(0.01, 0.999), max_size=8))
def test_radial_basis_is_enveloped_spherical_bessel_functions_over_their_frequency(cutoff, functions, fractions):
    r = cutoff * np.array(fractions, dtype=np.float64)
    n = np.arange(1, functions + 1)
    u = r / cutoff
    fade = (1 - u) ** 3 * (1 + 3 * u + 6 * u * u)
    # √(2/r_c) j₀(nπr/r_c) nπ/r_c, and numpy's sinc(x) is sin(πx)/(πx).
    expected = np.sqrt(2 / cutoff) * np.sinc(n * u[:, None]) * (n * np.pi / cutoff) * fade[:, None]
    expected *= np.sqrt(functions / (1 / n**2).sum()) / n
    found = radial_basis(torch.from_numpy(r), cutoff, functions)
    assert found.shape == (len(fractions), functions)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-11)


@given(st.integers(1, 12), st.lists(st.floats(-1, 1), max_size=8))
def test_legendre_polynomials_equal_those_of_numpy(functions, cosines):
    x = np.array(cosines, dtype=np.float64)
    found = legendre(torch.from_numpy(x), functions)
    assert len(found) == functions
    for degree, values in enumerate(found):
        np.testing.assert_allclose(
            values.numpy(), np.polynomial.Legendre.basis(degree)(x), rtol=0, atol=1e-12, err_msg=f"P_{degree}"
        )


@pytest.mark.parametrize("cosine", [1.0, -1.0])
def test_legendre_polynomials_have_their_derivatives_at_flat_angles(cosine):
    for degree in range(8):
        found = derivatives_at(lambda x, n=degree + 1: legendre(x, n)[-1] + 0.0 * x**3, cosine)
        # P_l(±1) = (±1)^l, P_l'(±1) = (±1)^{l+1} l(l+1)/2, P_l'' = (±1)^l (l-1)l(l+1)(l+2)/8
        slope, curvature = degree * (degree + 1) / 2, (degree - 1) * degree * (degree + 1) * (degree + 2) / 8
        expected = [cosine**degree, cosine ** (degree + 1) * slope, cosine**degree * curvature]
        assert found == pytest.approx(expected, abs=1e-10)
