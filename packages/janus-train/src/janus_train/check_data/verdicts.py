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

_HARTREE, _RYDBERG, _BOHR = 27.211386, 13.605693, 0.52917721
_ENERGY_UNITS = {"eV": 1.0, "Hartree": _HARTREE, "Rydberg": _RYDBERG, "kcal/mol": 1 / 23.060548, "kJ/mol": 1 / 96.485332}
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
    if abs(straight) > max(_STRAIGHT, abs(correlation) + 0.02) and abs(correlation) < 0.98:
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
    per_atom, straight = _fit([pair.said / pair.atoms for pair in pairs], [abs(factor) / factor * p.found for p in pairs])
    if abs(per_atom - 1) < _NEAR and straight > _STRAIGHT:
        units.insert(0, "energies look like those of an atom, not of the frame")
    return _joined(sign, units, f"energies are {factor:.3g} times what the forces say: look at their units")


def _units(energy: str, force: str) -> str:
    wrong = [f"energies look like {energy}"] * (energy != "eV") + [f"forces look like {force}"] * (force != "eV/Å")
    return " and ".join(wrong)


def _stress_mistake(factor: float, pairs: Sequence[Pair]) -> str:
    sign = "the sign of the stress is wrong (tension is positive here; VASP and LAMMPS say pressure)" if factor < 0 else ""
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
    """The factor by least squares, and the correlation, both through zero. Pairs count by the size of what they say."""
    x, y = np.array(said), np.array(found)
    xx, yy, xy = float(x @ x), float(y @ y), float(x @ y)
    if xx == 0 or yy == 0:
        return 1.0 if xx == yy else 0.0, 1.0 if xx == yy else 0.0
    return xy / xx, xy / np.sqrt(xx * yy)


def _worst(pairs: Sequence[Pair], factor: float) -> tuple[str, ...]:
    """Frames of the pairs that say most, or that miss the line most where it is right."""
    order = sorted(pairs, key=lambda pair: -abs(pair.found - pair.said * (1 if abs(factor - 1) <= _RIGHT else 0)))
    return tuple(dict.fromkeys(origin for pair in order for origin in pair.origins))
