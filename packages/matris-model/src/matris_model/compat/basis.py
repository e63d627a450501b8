"""Functions of distances and angles as the published model has them, with its names of parameters."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from matris_model.basis import legendre

# Positive zeros of the spherical Bessel functions j_0 to j_3, row by row.
_ZEROS = (
    (math.pi, 2 * math.pi, 3 * math.pi, 4 * math.pi),
    (4.493409457909064, 7.725251836937707, 10.904121659428899, 14.066193912831473),
    (5.763459196894550, 9.095011330476355, 12.322940970566582, 15.514603010886749),
    (6.987932000500519, 10.417118547379365, 13.698023153249249, 16.923621285213838),
)

# What the published code evaluates for a cutoff of 6 Å, from a table it keeps in single precision: up to 1.4e-5 off the
# formula. Weights were trained on these.
_PUBLISHED_CUTOFF, _PUBLISHED_FACTOR = 6.0, 0.09622504562139511
_PUBLISHED = (
    (0.28867514414941703, 0.5000000123429292, 0.5773502737283707, 0.4999999871061455),
    (0.10449817278793834, 0.2714309901934203, 0.450876170644104, 0.5810413007378193),
    (0.03345808096548054, 0.11552671686696714, 0.24648075870733172, 0.4035783344048948),
    (0.01002864967657004, 0.0433778622891207, 0.11274810731748332, 0.22170821566811202),
)

_ROOT_OF_HALF = 0.7071067690849304  # in single precision, as published


class BesselExpansion(nn.Module):
    """Enveloped Bessel functions `u(r/r_c) √(2/r_c) sin(f_n r/r_c)/r`, with frequencies f_n that start at nπ.

    The envelope is u(x) = 1 − (p+1)(p+2)/2 x^p + p(p+2) x^{p+1} − p(p+1)/2 x^{p+2}, and zero from x = 1.
    """

    frequencies: Tensor

    def __init__(self, functions: int, cutoff: float, exponent: int, learnable: bool) -> None:
        super().__init__()
        self.cutoff, self.exponent = cutoff, exponent
        _add_frequencies(self, math.pi * torch.arange(1, functions + 1), learnable)

    def forward(self, distances: Float[Tensor, "bonds"]) -> Float[Tensor, "bonds functions"]:
        """Zero, with slope and curvature, at the cutoff and beyond."""
        x = distances / self.cutoff
        waves = torch.sin(x[:, None] * self.frequencies)
        return waves * (math.sqrt(2 / self.cutoff) * envelope(x, self.exponent) / distances)[:, None]


def envelope(x: Float[Tensor, "*shape"], exponent: int) -> Float[Tensor, "*shape"]:
    """1 − (p+1)(p+2)/2 x^p + p(p+2) x^{p+1} − p(p+1)/2 x^{p+2} below x = 1, else 0 (arXiv 2003.03123, eq. 8).

    Written as (1 − x)³ Σ_{k<p} (k+1)(k+2)/2 x^k, which is the same polynomial and keeps its digits near x = 1.
    """
    x = x.clamp(max=1.0)
    total = torch.full_like(x, exponent * (exponent + 1) / 2)
    for k in range(exponent - 2, -1, -1):
        total = total * x + (k + 1) * (k + 2) / 2
    return (1 - x) ** 3 * total


class FourierExpansion(nn.Module):
    """`[1/√2, sin g_k θ, cos g_k θ]/√π` of the angle θ, with frequencies g_k that start at 1, 2, 3, ..."""

    frequencies: Tensor

    def __init__(self, functions: int, learnable: bool) -> None:
        super().__init__()
        _add_frequencies(self, torch.arange(1, (functions - 1) // 2 + 1), learnable)

    def forward(self, cosines: Float[Tensor, "angles"]) -> Float[Tensor, "angles functions"]:
        """Functions of the angle that has this cosine, strictly between −1 and 1."""
        waves = torch.acos(cosines)[:, None] * self.frequencies
        first = torch.full_like(cosines, _ROOT_OF_HALF)[:, None]
        return torch.cat([first, torch.sin(waves), torch.cos(waves)], dim=1) / math.sqrt(math.pi)


class SphericalHarmonicExpansion(nn.Module):
    """`C_{l,n} √((2l+1)/4π) P_l(cos θ)`, l major.

    C_{l,n} = √(2/R³) j_l(z_{l,n}/R)/|j_{l+1}(z_{l,n})| with the zeros z of j_l and the cutoff R: the published code
    feeds a radial function of the second edge with the length of its unit vector, so it is constant, and of the 16
    functions 4 are independent.
    """

    factor: Tensor
    constants: Tensor

    def __init__(self, max_l: int, max_n: int, cutoff: float) -> None:
        super().__init__()
        self.max_l = max_l
        self.register_buffer("factor", torch.tensor(math.sqrt(2 / cutoff**3), dtype=torch.float32))
        table = _PUBLISHED if cutoff == _PUBLISHED_CUTOFF else _radial_constants(cutoff)
        scale = _PUBLISHED_FACTOR if cutoff == _PUBLISHED_CUTOFF else math.sqrt(2 / cutoff**3)
        rows = [
            [math.sqrt((2 * degree + 1) / (4 * math.pi)) * constant / scale for constant in table[degree][:max_n]]
            for degree in range(max_l)
        ]
        self.register_buffer("constants", torch.tensor(rows, dtype=torch.float64), persistent=False)

    def forward(self, cosines: Float[Tensor, "angles"]) -> Float[Tensor, "angles functions"]:
        """Polynomials of the cosine."""
        constants = self.factor * self.constants.to(cosines.dtype)
        polynomials = torch.stack(legendre(cosines, self.max_l), dim=1)
        return (polynomials[:, :, None] * constants).flatten(1)


def _radial_constants(cutoff: float) -> tuple[tuple[float, ...], ...]:
    return tuple(
        tuple(
            math.sqrt(2 / cutoff**3) * spherical_bessel(order, zero / cutoff) / abs(spherical_bessel(order + 1, zero))
            for zero in zeros
        )
        for order, zeros in enumerate(_ZEROS)
    )


def spherical_bessel(order: int, x: float) -> float:
    """j_order(x) by upward recurrence (DLMF 10.51.1), which loses some five digits where x is well below the order."""
    before, now = math.cos(x) / x, math.sin(x) / x
    for n in range(order):
        before, now = now, (2 * n + 1) / x * now - before
    return now


def _add_frequencies(module: nn.Module, frequencies: Tensor, learnable: bool) -> None:
    values = frequencies.to(torch.get_default_dtype())
    if learnable:
        module.register_parameter("frequencies", nn.Parameter(values))
    else:
        module.register_buffer("frequencies", values)
