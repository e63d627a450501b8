"""What the factor between two labels says of their units and signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from janus_train.check_data.series import Pair

# A factor this near to that of a mistake tells it; labels of a real calculation agree better than this with 1.
_NEAR = 0.04
_RIGHT = 0.1
# Correlation from which the factor means something.
_STRAIGHT = 0.9
_FEWEST = 3
# Part of the pairs that have to agree.
_KEPT = 0.8
# Energies that miss what forces say by more than this, eV, and by so many times what four fifths miss it by.
_JUMP, _JUMPS = 1.0, 20
# Components are taken for VASP's where that leaves so much less of the energies unexplained.
_SO_MUCH_STRAIGHTER, _ROUNDING = 0.2, 1e-7

_HARTREE, _RYDBERG, _BOHR = 27.211386, 13.605693, 0.52917721
_ENERGY_UNITS = {
    "eV": 1.0,
    "Hartree": _HARTREE,
    "Rydberg": _RYDBERG,
    "kcal/mol": 1 / 23.060548,
    "kJ/mol": 1 / 96.485332,
}
_FORCE_UNITS = {
    "eV/Å": 1.0,
    "Hartree/bohr": _HARTREE / _BOHR,
    "Rydberg/bohr": _RYDBERG / _BOHR,
    "Hartree/Å": _HARTREE,
    "kcal/mol/Å": 1 / 23.060548,
    "kJ/mol/Å": 1 / 96.485332,
    "eV/bohr": 1 / _BOHR,
}
_STRESS_UNITS = {"eV/Å³": 1.0, "GPa": 1 / 160.21766, "kB": 1 / 1602.1766, "Hartree/bohr³": _HARTREE / _BOHR**3}


@dataclass(frozen=True)
class Verdict:
    """What pairs of one task say of a label.

    Attributes:
        pairs: how many.
        factor: energies are this times what the label says; 1 is right.
        correlation: between the two.
        suspicion: what is wrong, in words; None where nothing is.
        origins: frames to look at.
    """

    pairs: int
    factor: float
    correlation: float
    suspicion: str | None
    origins: tuple[str, ...]


def force_verdict(pairs: Sequence[Pair]) -> Verdict | None:
    """What series of displaced frames say of energies and forces; None for too few of them."""
    if len(pairs) < _FEWEST:
        return None
    factor, correlation = _fit([pair.said for pair in pairs], [pair.found for pair in pairs])
    suspicion = None
    if abs(correlation) < _STRAIGHT:
        suspicion = "forces are not the derivative of the energies: other labels, or another level of theory"
    elif abs(factor - 1) > _RIGHT:
        suspicion = _force_mistake(factor, pairs)
    return Verdict(len(pairs), factor, correlation, suspicion, _worst(pairs, factor))


def stress_verdict(pairs: Sequence[Pair]) -> Verdict | None:
    """What series of strained frames say of energies and stresses; None for too few of them."""
    if len(pairs) < _FEWEST:
        return None
    found = [pair.found for pair in pairs]
    factor, correlation = _fit([pair.said for pair in pairs], found)
    in_order, straight = _fit([pair.variants["order"] for pair in pairs], found)
    suspicion = None
    if abs(straight) > _STRAIGHT and 1 - straight**2 < _SO_MUCH_STRAIGHTER * (1 - correlation**2) - _ROUNDING:
        mistake = _stress_mistake(in_order, pairs) if abs(in_order - 1) > _RIGHT else ""
        suspicion = "six stress components are in VASP's order (xx yy zz xy yz zx), not in ASE's (xx yy zz yz xz xy)"
        suspicion += f"; also, {mistake}" if mistake else ""
    elif abs(correlation) < _STRAIGHT:
        suspicion = "stress is not the derivative of the energies: components out of order, or another level of theory"
    elif abs(factor - 1) > _RIGHT:
        suspicion = _stress_mistake(factor, pairs)
    return Verdict(len(pairs), factor, correlation, suspicion, _worst(pairs, factor))


def _force_mistake(factor: float, pairs: Sequence[Pair]) -> str:
    sign = "the sign of the forces is wrong (they are gradients)" if factor < 0 else ""
    size = abs(factor)
    if abs(size - 1) <= _RIGHT:
        return sign
    units = [
        _units(energy, force)
        for energy, one in _ENERGY_UNITS.items()
        for force, other in _FORCE_UNITS.items()
        if abs(size * one / other - 1) < _NEAR
    ]
    per_atom, straight = _fit(
        [pair.said / pair.atoms for pair in pairs], [abs(factor) / factor * p.found for p in pairs]
    )
    if abs(per_atom - 1) < _NEAR and straight > _STRAIGHT:
        units.insert(0, "energies look like those of an atom, not of the frame")
    return _joined(sign, units, f"energies are {factor:.3g} times what the forces say: look at their units")


def _units(energy: str, force: str) -> str:
    wrong = [f"energies look like {energy}"] * (energy != "eV") + [f"forces look like {force}"] * (force != "eV/Å")
    return " and ".join(wrong)


def _stress_mistake(factor: float, pairs: Sequence[Pair]) -> str:
    sign = (
        "the sign of the stress is wrong (tension is positive here; VASP and LAMMPS say pressure)" if factor < 0 else ""
    )
    size = abs(factor)
    if abs(size - 1) <= _RIGHT:
        return sign
    units = [f"stresses look like {unit}" for unit, one in _STRESS_UNITS.items() if abs(size / one - 1) < _NEAR]
    of_virial, straight = _fit([pair.variants["virial"] for pair in pairs], [p.found for p in pairs])
    if not units and abs(abs(of_virial) - 1) < _NEAR and abs(straight) > _STRAIGHT:
        units.append("stresses look like virials in eV; divide by the volume of the cell")
    other = (
        f"energies are {factor:.3g} times what the stress says: look at its unit, and at the volume it was divided by "
        "(that of a slab, or of the cell?)"
    )
    return _joined(sign, units, other)


def _joined(sign: str, units: Sequence[str], other: str) -> str:
    size = ", or ".join(units) if units else other
    return f"{sign}, and {size}" if sign else size


def _fit(said: Sequence[float], found: Sequence[float]) -> tuple[float, float]:
    """The factor that most of what is said agrees on, and the correlation, through zero, without the fifth that agrees
    least: single calculations that ended in another state do not count against the rest.

    The factor makes the sum of absolute misfits smallest: the median of the ratios, weighted by what is said.
    """
    x, y = np.array(said), np.array(found)
    telling = x != 0
    if not telling.any():
        return (1.0, 1.0) if not y.any() else (0.0, 0.0)
    order = np.argsort(y[telling] / x[telling])
    weights = np.cumsum(np.abs(x[telling])[order])
    factor = float((y[telling] / x[telling])[order][np.searchsorted(weights, weights[-1] / 2)])
    misfit = np.abs(y - factor * x)
    kept = misfit <= np.sort(misfit)[int(_KEPT * (len(misfit) - 1))]
    xx, yy, xy = float(x[kept] @ x[kept]), float(y[kept] @ y[kept]), float(x[kept] @ y[kept])
    return factor, xy / float(np.sqrt(xx * yy)) if xx > 0 and yy > 0 else 0.0


def energy_jumps(pairs: Sequence[Pair]) -> list[str]:
    """Frames between which energies jump by what no force tells, worst first: calculations that did not converge, or
    ended in another electronic state. Where forces and energies do not agree as a whole, none.
    """
    if len(pairs) < _FEWEST:
        return []
    misfit = np.abs([pair.found - pair.said for pair in pairs])
    far = np.flatnonzero(misfit > max(_JUMP, _JUMPS * float(np.quantile(misfit, _KEPT))))
    order = far[np.argsort(-misfit[far])]
    return [
        f"{pairs[at].origins[0]} and {pairs[at].origins[1]} ({pairs[at].found - pairs[at].said:+.2f} eV)"
        for at in order
    ]


def _worst(pairs: Sequence[Pair], factor: float) -> tuple[str, ...]:
    """Frames of the pairs that say most, or that miss the line most where it is right."""
    order = sorted(pairs, key=lambda pair: -abs(pair.found - pair.said * (1 if abs(factor - 1) <= _RIGHT else 0)))
    return tuple(dict.fromkeys(origin for pair in order for origin in pair.origins))
