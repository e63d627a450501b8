"""What looks wrong in single frames, and in the labels of a task as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from janus_graph import neighbor_lists
from janus_train.data.frame import Frame

# Nothing that anybody computed on purpose has two nuclei closer than this, Å (H2 has 0.74),
_CLOSEST = 0.5
# nor than this part of the sum of their covalent radii.
_OF_RADII = 0.5
# A force component beyond this is an outlier for any potential near equilibrium, eV/Å.
_LARGEST_FORCE = 50.0
# A typical largest stress component beyond this (160 GPa) is that of another unit, eV/Å³.
_LARGEST_STRESS = 1.0
# Correlation of stress with volume, among frames of a formula, below which its sign is wrong.
_AGAINST = -0.8
_FEWEST, _SPREAD = 5, 0.02
# Energies (references taken off) this far from the others, eV an atom, and by so many times their usual scatter.
_OUTLYING, _SPREADS = 2.0, 15
_BLOCK = 256

CLOSE = "atoms too close"
STRONG = f"a force component above {_LARGEST_FORCE:g} eV/Å"
NO_VOLUME = "a stress, but no periodic cell to have it in (not used)"


@dataclass
class FrameLooks:
    """Frames by what looks wrong in them, and stresses of each task; it is told of frames one after the other.

    Attributes:
        frames: origins by problem.
        stresses: by task, largest component of each frame with a stress, and where it comes from.
        pressures: by task and formula, logarithm of the volume of an atom and mean normal stress of each frame.
    """

    frames: dict[str, list[str]] = field(default_factory=lambda: {CLOSE: [], STRONG: [], NO_VOLUME: []})
    stresses: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    pressures: dict[tuple[str, bytes], list[tuple[float, float]]] = field(default_factory=dict)

    def take_in(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """The same frames, looked at as they pass."""
        while block := list(islice(frames, _BLOCK)):
            self._look_at(block)
            yield from block

    def _look_at(self, block: Sequence[Frame]) -> None:
        for frame, close in zip(block, _too_close(block), strict=True):
            if close:
                self.frames[CLOSE].append(frame.origin)
            if frame.forces is not None and np.abs(frame.forces).max() > _LARGEST_FORCE:
                self.frames[STRONG].append(frame.origin)
            if frame.stress is None:
                continue
            if not frame.structure.has_volume:
                self.frames[NO_VOLUME].append(frame.origin)
                continue
            self.stresses.setdefault(frame.task, []).append((float(np.abs(frame.stress).max()), frame.origin))
            volume = abs(float(np.linalg.det(frame.structure.cell))) / len(frame.structure)
            key = frame.task, np.bincount(frame.structure.atomic_numbers).tobytes()
            self.pressures.setdefault(key, []).append((np.log(volume), float(np.trace(frame.stress)) / 3))

    def stress_suspicions(self) -> dict[str, list[str]]:
        """Frames by what is suspicious in the stresses of their task, for each task."""
        found = {}
        for task, stresses in self.stresses.items():
            typical = float(np.median([size for size, _ in stresses]))
            if typical > _LARGEST_STRESS:
                text = (
                    f"task {task}: the largest component of a stress is typically {typical:.3g} eV/Å³, which is "
                    f"{160.2 * typical:.3g} GPa: look at the unit (1 GPa = 0.00624 eV/Å³, 1 kB = 0.000624)"
                )
                found[text] = [origin for _, origin in sorted(stresses, reverse=True)]
            against, along = self._trends(task)
            if against > along:
                text = (
                    f"task {task}: in {against} of {against + along} formulas, compressed frames are under tension: "
                    "the sign of the stress is wrong (tension is positive here)"
                )
                found[text] = [origin for _, origin in stresses]
        return found

    def _trends(self, task: str) -> tuple[int, int]:
        """Formulas where the stress clearly falls, and clearly grows, with the volume."""
        against, along = 0, 0
        for (own, _), points in self.pressures.items():
            volumes, stresses = np.array(points).T
            if own == task and len(points) >= _FEWEST and np.ptp(volumes) > _SPREAD and np.ptp(stresses) > 0:
                correlation = np.corrcoef(volumes, stresses)[0, 1]
                against += int(correlation < _AGAINST)
                along += int(correlation > -_AGAINST)
        return against, along


def rounded_to_float32(energies: np.ndarray, atoms: np.ndarray) -> float | None:
    """How coarse energies are, eV an atom, if all of them are numbers that float32 can hold and that matters."""
    known = np.isfinite(energies)
    energies, atoms = energies[known], atoms[known]
    if (
        len(energies) < _FEWEST
        or not (energies.astype(np.float32) == energies).all()
        or (energies == np.rint(energies)).all()
    ):
        return None
    step = float((np.spacing(np.abs(energies).astype(np.float32)) / atoms).max())
    return step if step > 1e-4 else None


def energy_outliers(residuals: np.ndarray) -> np.ndarray:
    """Places of energies (eV an atom, references taken off) that are far from all others."""
    if len(residuals) < _FEWEST:
        return np.zeros(0, dtype=np.int64)
    off = np.abs(residuals - np.median(residuals))
    spread = 1.4826 * float(np.median(off))
    far = np.flatnonzero((off > _SPREADS * spread) & (off > _OUTLYING))
    return far[np.argsort(-off[far])]


def _too_close(frames: Sequence[Frame]) -> list[bool]:
    from ase.data import covalent_radii

    structures = [frame.structure for frame in frames]
    close = []
    for structure, listed in zip(structures, neighbor_lists(structures, 2.0), strict=True):
        radii = covalent_radii[structure.atomic_numbers]
        least = np.maximum(_CLOSEST, _OF_RADII * (radii[listed.centre] + radii[listed.neighbour]))
        close.append(bool((listed.distance < least).any()))
    return close
