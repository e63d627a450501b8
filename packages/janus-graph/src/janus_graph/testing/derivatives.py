"""Whether forces and stress are the derivatives of the energy, by finite differences."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float64

from janus_graph.batch import build_graph
from janus_graph.derivatives import Potential
from janus_graph.structure import Structure

_EPSILON = float(np.finfo(np.float64).eps)
# Balances the two errors of a central difference, step² of the series and epsilon / step of rounding.
_STEP = _EPSILON ** (1 / 3)

_EnergiesOf: TypeAlias = Callable[[Sequence[Structure]], Float64[np.ndarray, "structures"]]


def check_conservative(
    potential: Potential, structures: Iterable[Structure], cutoff: float, near_cutoff: float
) -> None:
    """Compare forces and stress with central differences of the energy, structure by structure.

    Each displaced or strained structure gets a graph of its own, so edges that come or go at the cutoff count as well:
    an energy that jumps there fails. The potential must compute in float64. Stress is compared where all three
    directions repeat and must be zero elsewhere.

    Args:
        potential: gives energy, forces and stress.
        structures: what to try it on.
        cutoff: of the graphs, Å.
        near_cutoff: of the graphs, Å.

    Raises:
        AssertionError: a force or stress differs by more than the error of the difference; the message says which.
    """
    for structure in structures:
        graph = build_graph([structure], cutoff, near_cutoff)
        with torch.no_grad():
            values = potential(graph, ("energy", "forces", "stress"))
        if values.forces is None or values.stress is None:
            raise AssertionError("the potential was asked for forces and stress and gave None for one of them")

        def energies(changed: Sequence[Structure]) -> Float64[np.ndarray, "structures"]:
            with torch.no_grad():
                return potential(build_graph(changed, cutoff, near_cutoff), ("energy",)).energy.numpy()

        size = 1.0 + abs(float(values.energy[0]))
        forces = graph.in_input_order(values.forces).numpy()
        _require_close("forces (eV/Å)", forces, _numerical_forces(energies, structure), size, structure)
        stress = values.stress[0].numpy()
        if structure.has_volume:
            volume = float(abs(np.linalg.det(structure.cell)))
            expected = _numerical_strain_gradient(energies, structure)
            _require_close("stress · volume (eV)", stress * volume, expected, size, structure)
        elif stress.any():
            raise AssertionError(
                f"stress is {stress.tolist()}; it must be zero where not everything repeats: {structure}"
            )


def _numerical_forces(energies: _EnergiesOf, structure: Structure) -> Float64[np.ndarray, "atoms 3"]:
    changed = []
    for atom, component, sign in itertools.product(range(len(structure)), range(3), (1, -1)):
        positions = structure.positions.copy()
        positions[atom, component] += sign * _STEP
        changed.append(dataclasses.replace(structure, positions=positions))
    plus_minus = energies(changed).reshape(-1, 3, 2)
    return -(plus_minus[..., 0] - plus_minus[..., 1]) / (2 * _STEP)


def _numerical_strain_gradient(energies: _EnergiesOf, structure: Structure) -> Float64[np.ndarray, "3 3"]:
    changed = []
    for row, column, sign in itertools.product(range(3), range(3), (1, -1)):
        deformation = np.eye(3)
        deformation[row, column] += sign * _STEP / 2
        deformation[column, row] += sign * _STEP / 2
        changed.append(
            dataclasses.replace(
                structure, positions=structure.positions @ deformation, cell=structure.cell @ deformation
            )
        )
    plus_minus = energies(changed).reshape(3, 3, 2)
    return (plus_minus[..., 0] - plus_minus[..., 1]) / (2 * _STEP)


def _require_close(name: str, found: np.ndarray, expected: np.ndarray, energy: float, structure: Structure) -> None:
    rounding = 100 * _EPSILON * energy / _STEP
    series = 1000 * _STEP**2 * (1.0 + np.abs(expected).max())
    error = np.abs(found - expected)
    if not error.max() <= rounding + series:
        worst = tuple(int(i) for i in np.unravel_index(np.argmax(np.nan_to_num(error, nan=np.inf)), error.shape))
        raise AssertionError(
            f"{name} at {worst} is {found[worst]:.9g} and by finite differences {expected[worst]:.9g}, "
            f"off by {error[worst]:.2g} where {rounding + series:.2g} is allowed: {structure}"
        )
