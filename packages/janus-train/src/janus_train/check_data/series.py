"""Do the labels belong together? What forces and stresses say of energy differences between neighbours in a series.

Two frames of the same atoms, one a little displaced or strained from the other, have energies that differ by

    ΔE = −½ (F₁ + F₂) · Δx                   the same cell, atoms displaced by Δx
    ΔE = ½ (V₁ σ₁ + V₂ σ₂) : ε               the same fractional coordinates, strain ε (logarithmic) between the cells

up to the third order of the step. Over all such pairs of a task, energies are fitted as a factor times what the other
label says. The factor is 1, or tells the mistake: −1 for a sign, 1/1602 for kB, 1/27.2 for energies in Hartree.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64

from janus_graph import Structure
from janus_train.data.frame import Frame

# Å: beyond, forces change too much between two frames; below, energies differ by what files leave of their digits.
_LARGEST_STEP, _SMALLEST_STEP = 0.2, 1e-4
_LARGEST_STRAIN, _SMALLEST_STRAIN = 0.06, 1e-4
# Series that are kept in mind at a time, and frames of each.
_SERIES, _OF_SERIES = 2000, 12


@dataclass(frozen=True, eq=False)
class Pair:
    """Two frames that are neighbours in a series.

    Attributes:
        said: energy difference that forces or stress foretell, eV.
        found: energy difference of the labels, eV.
        origins: of the frames.
        atoms: of each.
        task: of both.
        variants: what other readings of the label would foretell, eV, by name.
    """

    said: float
    found: float
    origins: tuple[str, str]
    atoms: int
    task: str
    variants: dict[str, float] = field(default_factory=dict)


def displaced_pairs(frames: Iterable[Frame]) -> list[Pair]:
    """Frames with energy and forces, each with the one before of the same atoms in the same cell, if it is near."""
    last: OrderedDict[bytes, Frame] = OrderedDict()
    pairs = []
    for frame in frames:
        if frame.energy is None or frame.forces is None:
            continue
        key = _atoms_key(frame) + _cell_key(frame.structure)
        before = last.pop(key, None)
        if before is not None and (pair := _displaced(before, frame)) is not None:
            pairs.append(pair)
        last[key] = frame
        if len(last) > _SERIES:
            last.popitem(last=False)
    return pairs


def strained_pairs(frames: Iterable[Frame]) -> list[Pair]:
    """Frames with energy and stress of the same atoms at the same fractional coordinates in cells that are near."""
    series: OrderedDict[bytes, list[Frame]] = OrderedDict()
    pairs = []
    for frame in frames:
        if frame.energy is None or frame.stress is None or not frame.structure.has_volume:
            continue
        key = _atoms_key(frame) + _fractions_key(frame.structure)
        members = series.pop(key, [])
        pairs += [pair for other in members if (pair := _strained(other, frame)) is not None]
        series[key] = [*members[-_OF_SERIES + 1 :], frame]
        if len(series) > _SERIES:
            series.popitem(last=False)
    return pairs


def _displaced(before: Frame, after: Frame) -> Pair | None:
    assert before.energy is not None
    assert after.energy is not None
    assert before.forces is not None
    assert after.forces is not None
    step = _shortest(after.structure.positions - before.structure.positions, after.structure)
    largest = float(np.abs(step).max())
    if not _SMALLEST_STEP < largest < _LARGEST_STEP:
        return None
    said = -0.5 * float(((before.forces + after.forces) * step).sum())
    return Pair(said, after.energy - before.energy, (before.origin, after.origin), len(step), after.task)


def _strained(before: Frame, after: Frame) -> Pair | None:
    assert before.energy is not None
    assert after.energy is not None
    assert before.stress is not None
    assert after.stress is not None
    strain = _logarithmic_strain(before.structure.cell, after.structure.cell)
    if not _SMALLEST_STRAIN < np.abs(strain).max() < _LARGEST_STRAIN:
        return None
    volumes = [abs(float(np.linalg.det(frame.structure.cell))) for frame in (before, after)]

    def said(first: np.ndarray, second: np.ndarray) -> float:
        return 0.5 * float(((first + second) * strain).sum())

    stresses = (before.stress, after.stress)
    of_volume = [volume * stress for volume, stress in zip(volumes, stresses, strict=True)]
    vasp = [volume * _from_vasp_order(stress) for volume, stress in zip(volumes, stresses, strict=True)]
    return Pair(
        said(*of_volume),
        after.energy - before.energy,
        (before.origin, after.origin),
        len(before.structure),
        after.task,
        {"virial": said(*stresses), "order": said(*vasp)},
    )


def _logarithmic_strain(before: Float64[np.ndarray, "3 3"], after: Float64[np.ndarray, "3 3"]) -> np.ndarray:
    """The strain that takes one cell to the other, whatever rotation comes with it: ½ log(F Fᵀ), with rows r → r F."""
    deformation = np.linalg.solve(before, after)
    values, vectors = np.linalg.eigh(deformation @ deformation.T)
    strain: np.ndarray = (vectors * (0.5 * np.log(values))) @ vectors.T
    return strain


def _from_vasp_order(stress: Float64[np.ndarray, "3 3"]) -> np.ndarray:
    """The stress, if six numbers in VASP's order (xx yy zz xy yz zx) were read as ASE's (xx yy zz yz xz xy)."""
    fixed = np.diag(np.diag(stress))
    fixed[0, 1] = fixed[1, 0] = stress[1, 2]
    fixed[1, 2] = fixed[2, 1] = stress[0, 2]
    fixed[0, 2] = fixed[2, 0] = stress[0, 1]
    return fixed


def _shortest(steps: Float64[np.ndarray, "atoms 3"], structure: Structure) -> np.ndarray:
    """Displacements without the lattice translations that a program put in when an atom left the cell."""
    if not structure.periodic.any():
        return steps
    cell = np.where(structure.periodic[:, None], structure.cell, 0.0)
    shifts: np.ndarray = steps - np.rint(steps @ np.linalg.pinv(cell)) @ cell
    return shifts


def _atoms_key(frame: Frame) -> bytes:
    structure = frame.structure
    return f"{frame.task} {structure.charge} {structure.spin} ".encode() + structure.atomic_numbers.tobytes()


def _cell_key(structure: Structure) -> bytes:
    cell = np.rint(np.where(structure.periodic[:, None], structure.cell, 0.0) * 1e5).astype(np.int64)
    return cell.tobytes() + structure.periodic.tobytes()


def _fractions_key(structure: Structure) -> bytes:
    fractions = structure.positions @ np.linalg.inv(structure.cell)
    steps = np.rint((fractions - fractions[0]) * 1000).astype(np.int64) % 1000
    return steps.tobytes()
