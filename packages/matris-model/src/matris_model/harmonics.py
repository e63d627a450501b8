"""Real spherical harmonics of directions, degree after degree, by products with the first one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor


def raising_coefficients(degrees: int) -> list[Float64[np.ndarray, "below 3 above"]]:
    """What makes harmonics of degree l + 1 of those of degree l, for l from 1 to degrees − 2:
    `Y_{l+1,n} = Σ_{ma} C_{man} Y_{l,m} Y_{1,a}`, with C the mean of all three over the sphere, over Σ_{ma} of the
    square of that.
    """
    # Gauss-Legendre in the cosine and even angles: exact for the products of three, whose degree is at most 2 degrees.
    cosines, weights = np.polynomial.legendre.leggauss(degrees + 1)
    angles = np.arange(2 * degrees + 1) * (2 * np.pi / (2 * degrees + 1))
    values = _harmonics(np.repeat(cosines, len(angles)), np.tile(angles, len(cosines)), degrees)
    weights = np.repeat(weights / weights.sum() / len(angles), len(angles))
    found = []
    for degree in range(1, degrees - 1):
        below, above = values[degree**2 : (degree + 1) ** 2], values[(degree + 1) ** 2 : (degree + 2) ** 2]
        means = np.einsum("p,mp,ap,np->man", weights, below, values[1:4], above)
        found.append(means / np.square(means).sum(axis=(0, 1)))
    return found


def _harmonics(
    cosines: Float64[np.ndarray, "points"], angles: Float64[np.ndarray, "points"], degrees: int
) -> Float64[np.ndarray, "harmonics points"]:
    """Harmonics at polar angles of these cosines and at these azimuths, by the recurrence of Legendre functions."""
    sines, found = np.sqrt(1 - cosines**2), {}
    for order in range(degrees):
        odd = math.prod((2 * m + 1) / (2 * m) for m in range(1, order + 1))
        below, legendre, last = np.zeros_like(cosines), math.sqrt((2 if order else 1) * odd) * sines**order, 0.0
        for degree in range(order, degrees):
            found[degree, order] = legendre * np.cos(order * angles)
            if order:
                found[degree, -order] = legendre * np.sin(order * angles)
            # z P_l = s_{l+1} P_{l+1} + s_l P_{l−1} for functions of one size, s_l² = (l² − m²) / (4 l² − 1).
            step = math.sqrt(((degree + 1) ** 2 - order**2) / (4 * (degree + 1) ** 2 - 1))
            below, legendre, last = legendre, (cosines * legendre - last * below) / step, step
    return np.stack([found[key] for key in sorted(found)])


def spherical_harmonics(
    units: Float[Tensor, "edges 3"], raising: Sequence[Float[Tensor, "below 3 above"]]
) -> Float[Tensor, "edges harmonics"]:
    """Real spherical harmonics of degree 0, 1 and one more for each of the coefficients, each degree with its orders
    from −l to l, with a mean square of one over the sphere.

    Polynomials in x, y and z, so nothing happens at the poles, and few operations, which is what a GPU waits for.

    Args:
        units: unit vectors.
        raising: `raising_coefficients` as tensors.
    """
    first = math.sqrt(3) * units.roll(-1, dims=1)  # y, z, x
    found = [torch.ones_like(units[:, :1]), first]
    for coefficients in raising:
        products = found[-1][:, :, None] * first[:, None, :]
        found.append(products.flatten(1) @ coefficients.flatten(0, 1))
    return torch.cat(found, dim=1)
