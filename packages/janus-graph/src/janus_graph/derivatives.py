"""Forces and stress as the exact derivatives of an energy."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from janus_graph.geometry import strained, stress_of
from janus_graph.graph import AtomGraph

PROPERTIES = ("energy", "forces", "stress", "magmoms")
"""What can be asked of a potential."""


@dataclass(frozen=True, eq=False)
class Properties:
    """What a potential says about a batch; fields that were not asked for are None.

    Attributes:
        energy: total energy of each structure, eV.
        forces: −∂E/∂x, eV/Å, in the order of the graph's atoms.
        stress: (1/V) ∂E/∂ε, eV/Å³, tension positive (ASE's sign); zero for structures that do not repeat in all
            three directions, for which it is not defined.
        magmoms: magnitude of the magnetic moment of each atom, μB.
    """

    energy: Float64[Tensor, "structures"]
    forces: Float64[Tensor, "atoms 3"] | None = None
    stress: Float64[Tensor, "structures 3 3"] | None = None
    magmoms: Float[Tensor, "atoms"] | None = None

    def detach(self) -> Properties:
        """The same values without their history."""
        rest = (x if x is None else x.detach() for x in (self.forces, self.stress, self.magmoms))
        return Properties(self.energy.detach(), *rest)


class Potential(Protocol):
    """Anything that turns a graph into energies, forces, ...: what the trainer trains and the calculator calls."""

    def __call__(self, graph: AtomGraph, properties: Collection[str]) -> Properties:
        """The asked properties. Differentiable (forces too) where gradients are enabled, plain values elsewhere."""
        ...


EnergyFunction: TypeAlias = Callable[[AtomGraph], tuple[Tensor, Tensor | None]]
"""Energies of the structures (differentiable in positions and cells) and, or None, magnetic moments of the atoms."""


def conservative_properties(energy: EnergyFunction, graph: AtomGraph, properties: Collection[str]) -> Properties:
    """Energy, and what is asked of forces, stress and magnetic moments, from an energy function alone.

    Where gradients are enabled the forces and stress stay differentiable, so that a loss of them can be taken back to
    the parameters (double backward); under `torch.no_grad()` they are plain values. A graph whose positions already
    require a gradient is differentiated with respect to those, so Hessians come out of the same function.

    Raises:
        ValueError: a property that does not exist, or magnetic moments from an energy function that gives none.
    """
    unknown = set(properties) - set(PROPERTIES)
    if unknown:
        raise ValueError(f"unknown properties {sorted(unknown)}; a potential has {', '.join(PROPERTIES)}")
    differentiable = torch.is_grad_enabled()
    want_forces, want_stress = "forces" in properties, "stress" in properties
    with torch.set_grad_enabled(differentiable or want_forces or want_stress):
        positions, strain, deformed = graph.positions, None, graph
        if want_forces and not positions.requires_grad:
            positions = positions.detach().requires_grad_()
            deformed = graph.replace(positions=positions)
        if want_stress:
            strain = torch.zeros_like(graph.cells, requires_grad=True)
            deformed = strained(deformed, strain)
        energies, magmoms = energy(deformed)
        inputs = ([positions] if want_forces else []) + ([strain] if strain is not None else [])
        gradients = iter(_gradients(energies, inputs, differentiable))
        forces: Tensor | None = -next(gradients) if want_forces else None
        stress: Tensor | None = next(gradients) if want_stress else None
        if stress is not None:
            stress = stress_of(graph, stress)
    if "magmoms" in properties and magmoms is None:
        raise ValueError("this potential has no magnetic moments; leave 'magmoms' out of the properties")
    if "magmoms" not in properties:
        magmoms = None
    values = Properties(energies, forces, stress, magmoms)
    return values if differentiable else values.detach()


def _gradients(energies: Tensor, inputs: list[Tensor], create_graph: bool) -> list[Tensor]:
    if not inputs:
        return []
    if not energies.requires_grad:  # an energy that depends on nothing, e.g. of isolated atoms by a pair potential
        return [torch.zeros_like(x) for x in inputs]
    return list(
        torch.autograd.grad(
            energies.sum(), inputs, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    )
