"""What laws are written with: a potential and its cutoffs, what it says about a structure, and how that is compared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float64

from janus_graph import AtomGraph, Potential, Properties, Structure, build_graph

TOLERANCE = 1e6 * float(np.finfo(np.float64).eps)
"""Of the size of what is compared. What a transformed structure adds is rounding in its coordinates, times how fast the
potential changes with them.
"""


@dataclass(frozen=True, eq=False)
class Values:
    """What a potential says about one structure, its atoms in the order they were given in: eV, eV/Å, eV/Å³."""

    energy: float
    forces: Float64[np.ndarray, "atoms 3"]
    stress: Float64[np.ndarray, "3 3"]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A potential and the cutoffs (Å) of the graphs it wants."""

    potential: Potential
    cutoff: float
    near_cutoff: float

    def __call__(self, structures: Sequence[Structure]) -> list[Values]:
        """Energy, forces and stress of structures that share a batch."""
        graph = self.graph(structures)
        with torch.no_grad():
            found = self.potential(graph, ("energy", "forces", "stress"))
        if found.forces is None or found.stress is None:
            raise AssertionError("the potential was asked for forces and stress and gave None for one of them")
        forces = np.split(
            graph.in_input_order(found.forces).cpu().numpy(), np.cumsum([len(structure) for structure in structures])
        )
        return [
            Values(float(energy), force, stress.cpu().numpy())
            for energy, force, stress in zip(found.energy, forces, found.stress, strict=False)
        ]

    def alone(self, structure: Structure) -> Values:
        """Energy, forces and stress of a structure that has the batch to itself."""
        return self([structure])[0]

    def energies(self, structures: Sequence[Structure]) -> Float64[np.ndarray, "structures"]:
        """Energies of structures that share a batch, eV."""
        with torch.no_grad():
            energies: np.ndarray = self.potential(self.graph(structures), ("energy",)).energy.cpu().numpy()
        return energies

    def graph(self, structures: Sequence[Structure]) -> AtomGraph:
        """The graph of a batch, with the cutoffs of this potential."""
        return build_graph(structures, self.cutoff, self.near_cutoff)


PotentialLaw: TypeAlias = Callable[[Candidate, Structure, np.random.Generator], None]
"""Raises `AssertionError` where the candidate breaks the law; the generator draws what the law does at random."""

BatchLaw: TypeAlias = Callable[[Candidate, Sequence[Structure], np.random.Generator], None]
"""A law about several structures at once, or about the potential as a whole."""


def with_weights(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> Potential:
    """The potential that a module is with some of its parameters, by name, replaced; the module is left as it is."""

    def potential(graph: AtomGraph, properties: Collection[str]) -> Properties:
        found: Properties = torch.func.functional_call(module, weights, (graph, properties))
        return found

    return potential


def require_same(law: str, found: Values, expected: Values, structure: Structure) -> None:
    """Raises `AssertionError` unless all values are the same up to rounding."""
    allowed = TOLERANCE * (1 + abs(expected.energy) + float(np.abs(expected.forces).max()))
    require_close(f"{law}: energy (eV)", np.array(found.energy), np.array(expected.energy), allowed, structure)
    require_close(f"{law}: forces (eV/Å)", found.forces, expected.forces, allowed, structure)
    require_close(f"{law}: stress (eV/Å³)", found.stress, expected.stress, allowed, structure)


def require_close(law: str, found: np.ndarray, expected: np.ndarray, allowed: float, where: object) -> None:
    """Raises `AssertionError`, naming the law, the worst place and where it was, unless the arrays are close."""
    error = np.abs(found - expected)
    if error.size and not error.max() <= allowed:
        worst = int(np.argmax(np.nan_to_num(error, nan=np.inf)))
        place = tuple(int(i) for i in np.unravel_index(worst, error.shape))
        raise AssertionError(
            f"broken law: {law} at {place} is {found[place]:.12g} and should be {expected[place]:.12g}, "
            f"off by {error[place]:.2g} where {allowed:.2g} is allowed: {where}"
        )
