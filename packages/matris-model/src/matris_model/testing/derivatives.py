"""Law 2: forces and stress are the derivatives of the energy, everywhere."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from jaxtyping import Float64

from janus_graph import Structure
from matris_model.testing.candidate import Candidate, require_close
from matris_model.testing.paths import bent, crossing

# Å, or parts of a length: small beside all that is physical, large beside the rounding of energies.
_STEP = 2e-5
_OFFSETS = np.array([-2, -1, 1, 2]) * _STEP

# Å: how far on either side of a cutoff the crossing edge is.
_BESIDE = 1e-7

# In larger structures as many coordinates are drawn: finite differences of all would take forever.
_MOST_COORDINATES = 36

# Atoms that are computed in one batch.
_BATCH_ATOMS = 400


def derivatives_are_exact(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """Forces and stress are the derivatives of the energy, by finite differences in coordinates and strain.

    Every component of the strain and every coordinate is tried, in structures of more than twelve atoms 36 coordinates
    that are drawn.
    """
    coordinates = np.eye(3 * len(structure)).reshape(-1, len(structure), 3)
    if len(coordinates) > _MOST_COORDINATES:
        coordinates = coordinates[rng.choice(len(coordinates), size=_MOST_COORDINATES, replace=False)]
    _require_derivatives("", candidate, structure, coordinates, np.eye(9).reshape(9, 3, 3))


def derivatives_are_exact_at_the_cutoffs(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """The same along drawn directions, where a neighbour is 1e-7 Å inside or outside the cutoff or the near cutoff.

    The structure is scaled to bring one there. Finite differences look at both sides of the cutoff.
    """
    cutoffs = {"cutoff": candidate.cutoff, "near cutoff": candidate.near_cutoff}
    for (name, cutoff), offset in itertools.product(cutoffs.items(), (-_BESIDE, _BESIDE)):
        at = crossing(structure, cutoff, rng)
        if at is not None:
            directions = rng.normal(size=(2, len(structure), 3))
            strain = rng.normal(size=(1, 3, 3))
            _require_derivatives(f" at the {name}", candidate, at(offset), directions, strain)


def derivatives_are_exact_at_flat_angles(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """The same for a triatomic of the structure's elements with angles of exactly 180° and 0°, in every coordinate."""
    at, _, _ = bent(structure, candidate.near_cutoff, rng)
    _require_derivatives(" at an angle of 180°", candidate, at(0.0), np.eye(9).reshape(9, 3, 3), np.zeros((0, 3, 3)))


def _require_derivatives(
    place: str,
    candidate: Candidate,
    structure: Structure,
    directions: Float64[np.ndarray, "moves atoms 3"],
    strains: Float64[np.ndarray, "strains 3 3"],
) -> None:
    """Compares slopes of the energy along moves of the atoms and strains with what forces and stress say."""
    found = candidate.alone(structure)
    moved = [
        [dataclasses.replace(structure, positions=structure.positions + x * direction) for x in _OFFSETS]
        for direction in directions
    ]
    slopes, uncertain = _slopes(candidate, moved)
    forces = (found.forces * directions).sum(axis=(1, 2))
    require_close(f"forces are minus the slope of the energy{place}", forces, -slopes, uncertain, structure)
    if not structure.has_volume:
        law = f"stress is zero where not everything repeats{place}"
        require_close(law, found.stress, np.zeros((3, 3)), 0.0, structure)
        return
    slopes, uncertain = _slopes(candidate, [[_strained(structure, x * strain) for x in _OFFSETS] for strain in strains])
    volume = float(abs(np.linalg.det(structure.cell)))
    work = volume * (found.stress * strains).sum(axis=(1, 2))
    require_close(f"stress times volume is the slope in strain{place}", work, slopes, uncertain, structure)


def _strained(structure: Structure, strain: Float64[np.ndarray, "3 3"]) -> Structure:
    deformation = np.eye(3) + (strain + strain.T) / 2
    return dataclasses.replace(
        structure, positions=structure.positions @ deformation, cell=structure.cell @ deformation
    )


def _slopes(candidate: Candidate, changed: list[list[Structure]]) -> tuple[Float64[np.ndarray, "places"], float]:
    """Slopes of the energy, extrapolated from central differences of two steps, and their uncertainty.

    Each place comes as four structures, at `_OFFSETS`. The two differences are apart by four thirds of the error of
    the worse; the better one is extrapolated from there, so how far they are apart is a generous bound, however sharply
    the potential bends. Rounding of the energy comes on top.
    """
    everything = list(itertools.chain.from_iterable(changed))
    if not everything:
        return np.zeros(0), 0.0
    batch = max(1, _BATCH_ATOMS // len(everything[0]))
    parts = [candidate.energies(everything[start : start + batch]) for start in range(0, len(everything), batch)]
    energies = np.concatenate(parts).reshape(-1, 4)
    wide = (energies[:, 3] - energies[:, 0]) / (4 * _STEP)
    narrow = (energies[:, 2] - energies[:, 1]) / (2 * _STEP)
    rounding = 1000 * float(np.finfo(np.float64).eps) * (1 + np.abs(energies).max()) / _STEP
    return (4 * narrow - wide) / 3, float(np.abs(narrow - wide).max() + rounding)
