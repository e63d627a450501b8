"""Reference energies that look wrong."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from jaxtyping import Int64

from janus_train.data.energy_rows import EnergyFit, EnergyRows

# What binding does to the mean energy per atom of any matter, eV: it lowers it, by less than 10.
_MOST_BOUND, _LEAST_BOUND = -20.0, 2.0
# A difference between an isolated atom and least squares on matter that no binding makes, eV.
_FAR = 40.0


class TaskEnergies(Protocol):
    """What is known of a task's energies: frames with several atoms, isolated atoms, and frames by element."""

    bound: EnergyRows
    isolated: dict[int, float]
    frames_of: Int64[np.ndarray, "elements"]

    def origin_of(self, element: int) -> str:
        """Of the last frame with an element."""
        ...


def suspicions(seen: TaskEnergies, fit: EnergyFit) -> list[str]:
    """What a person should look at, in sentences: isolated atoms far off what the other frames say, elements that a
    single frame speaks for.
    """
    from ase.data import chemical_symbols

    found = []
    bound = [int(z) for z in np.flatnonzero(seen.bound.present)]
    if bound and all(z in seen.isolated for z in bound):
        shift = seen.bound.mean - seen.bound.mean_of(seen.isolated)
        if not _MOST_BOUND < shift < _LEAST_BOUND:
            found.append(
                f"structures are on average {shift:.2f} eV/atom {'above' if shift > 0 else 'below'} their isolated "
                "atoms; were both computed with the same settings, and are both in eV?"
            )
    alone = seen.bound.fit({}) if seen.isolated and seen.bound.count else None
    for z, energy in sorted(seen.isolated.items()):
        if alone is None or z not in alone.fitted or z in alone.open:
            continue
        shift = float(alone.energies[z]) - energy
        if abs(shift) > _FAR:
            found.append(
                f"the isolated {chemical_symbols[z]} atom has {energy:.3f} eV, and least squares on the other frames "
                f"give {alone.energies[z]:.3f} eV; was it computed with the same settings?"
            )
    single = [z for z in fit.fitted if z not in fit.open and seen.frames_of[z] == 1 and z not in seen.isolated]
    return found + [
        f"{chemical_symbols[z]} is in one frame only, {seen.origin_of(z)}, whose whole error is in its reference energy"
        for z in single
    ]
