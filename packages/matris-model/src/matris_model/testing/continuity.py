"""Law 3: nothing jumps and no force has an unbounded slope, where neighbours come and go and where angles are flat."""

from __future__ import annotations

import numpy as np

from janus_graph import Structure
from matris_model.testing.candidate import Candidate, require_close
from matris_model.testing.paths import Path, bent, crossing

STEP = 1e-7
"""Å: energy and forces are compared this far on either side."""

ENERGY_JUMP = 1e-8
"""eV that the energy may jump by, beyond its slope."""

FORCE_JUMP = 1e-6
"""eV/Å that a force may jump by, beyond its slope."""

BENDING = 0.01
"""How far bending constants may differ, as a part of the largest."""

_BENDS = (1e-4, 1e-3, 1e-2)
"""Å off the straight line."""


def nothing_jumps_at_the_cutoff(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """Energy and forces are continuous, and forces have bounded slope, while a neighbour crosses the cutoff.

    The structure is scaled so that one does. Between 1e-7 Å inside and outside the energy may change by 1e-8 eV and a
    force by 1e-6 eV/Å more than the slopes on the two sides account for.
    """
    _require_continuity("at the cutoff", candidate, crossing(structure, candidate.cutoff, rng))


def nothing_jumps_at_the_near_cutoff(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """The same while a neighbour crosses the near cutoff."""
    _require_continuity("at the near cutoff", candidate, crossing(structure, candidate.near_cutoff, rng))


def bending_is_harmonic(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """A straight triatomic resists bending with the same constant at 1e-4, 1e-3 and 1e-2 Å, to 1 %; nothing jumps.

    A potential of the angle itself has a kink there, or forces that are cut off. Smooth ones are even in the
    displacement x, so what changes with x² is taken off the constants first. Where they are small by chance, the part
    of them that is the tension of the bonds is the measure.
    """
    at, across, lengths = bent(structure, candidate.near_cutoff, rng)
    straight, *bends = candidate([at(x) for x in (0.0, *_BENDS)])
    constants = np.array([-bend.forces[1] @ across / x for bend, x in zip(bends, _BENDS, strict=True)])
    squares = np.square(_BENDS)
    harmonic = constants - (constants[2] - constants[1]) / (squares[2] - squares[1]) * squares
    tension = float(np.abs(straight.forces).max() * (1 / lengths).sum())
    allowed = BENDING * max(float(np.abs(harmonic).max()), tension)
    law = "the bending constant (eV/Å²) is the same at 1e-4, 1e-3 and 1e-2 Å"
    require_close(law, harmonic, np.full_like(harmonic, harmonic[2]), allowed, at(0.0))
    _require_continuity("at an angle of 180°", candidate, at)


def _require_continuity(place: str, candidate: Candidate, at: Path | None) -> None:
    if at is None:
        return
    values = candidate([at(x * STEP) for x in (-3, -1, 1, 3)])
    energies = np.array([value.energy for value in values])
    forces = np.stack([value.forces for value in values])
    rounding = 100 * float(np.finfo(np.float64).eps) * float(np.abs(energies).max())
    jump = _jump(energies)
    require_close(f"the energy (eV) is continuous {place}", jump, np.zeros_like(jump), ENERGY_JUMP + rounding, at(0.0))
    jump = _jump(forces)
    require_close(f"forces (eV/Å) are continuous {place}", jump, np.zeros_like(jump), FORCE_JUMP, at(0.0))
    _require_bounded_slope(place, candidate, at)


def _jump(values: np.ndarray) -> np.ndarray:
    """What changes between the middle two of four equidistant values beyond the mean of the slopes on either side."""
    beyond: np.ndarray = (values[2] - values[1]) - ((values[1] - values[0]) + (values[3] - values[2])) / 2
    return beyond


def _require_bounded_slope(place: str, candidate: Candidate, at: Path) -> None:
    """The slope of forces over 2e-6 Å is not steeper than it is anywhere near over steps a thousand times as wide.

    One that grows like the distance to the power −1/2 would be 30 times as steep. A factor of three is left for slopes
    that change over the wide steps, and as much as rounding can do.
    """
    narrow, wide = 10 * STEP, 1e4 * STEP
    places = np.array([-narrow, narrow, *(wide * np.arange(-3, 4))])
    forces = np.stack([value.forces for value in candidate([at(x) for x in places])])
    slope = float(np.abs(forces[1] - forces[0]).max()) / (2 * narrow)
    around = float(np.abs(np.diff(forces[2:], axis=0)).max()) / wide
    allowed = 3 * around + 1e3 * float(np.finfo(np.float64).eps) * (1 + float(np.abs(forces).max())) / narrow
    if not slope <= allowed:
        raise AssertionError(
            f"broken law: the slope of forces is bounded {place}, but it is {slope:.3g} eV/Å² over {2 * narrow:.0e} Å "
            f"and at most {around:.3g} over steps of {wide:.0e} Å around: {at(0.0)}"
        )
