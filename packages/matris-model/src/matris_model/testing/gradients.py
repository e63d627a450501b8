"""Gradients of a loss of energies, forces and stress in the parameters, by three routes that share no mechanism."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from janus_graph import AtomGraph, Potential, Properties, Structure, strained, volumes
from matris_model.testing.candidate import TOLERANCE, Candidate, require_close, with_weights

# Directions in the space of parameters that finite differences are taken along, and their steps.
_DIRECTIONS = 2
_STEP = 1e-4


@dataclass(frozen=True, eq=False)
class ForceMatching:
    """A loss that is linear in the energies and quadratic in forces and stress: Σ c E + ½ Σ (F − F*)² + ½ Σ (Vσ − S*)².

    Attributes:
        energy_weights: c, a structure.
        forces: F*, eV/Å.
        stress: S*, eV.
        volumes: V, Å³; zero where there is no stress.
    """

    energy_weights: Float64[Tensor, "structures"]
    forces: Float64[Tensor, "atoms 3"]
    stress: Float64[Tensor, "structures 3 3"]
    volumes: Float64[Tensor, "structures"]

    @classmethod
    def around(cls, graph: AtomGraph, found: Properties, rng: np.random.Generator) -> ForceMatching:
        """A loss whose targets are apart from what was found by normal numbers, so that rounding stays small."""

        def normal(*shape: int) -> Tensor:
            return torch.from_numpy(rng.normal(size=shape)).to(graph.device)

        energy, forces, stress = _complete(found.detach())
        volume = volumes(graph)
        return cls(
            normal(*energy.shape),
            forces + normal(*forces.shape),
            stress * volume[:, None, None] + normal(*stress.shape),
            volume,
        )

    def __call__(self, energy: Tensor, forces: Tensor, stress: Tensor) -> Tensor:
        """The loss, eV and eV² and eV²/Å² alike."""
        of_stress = (stress * self.volumes[:, None, None] - self.stress) * (self.volumes > 0)[:, None, None]
        return (
            (self.energy_weights * energy).sum()
            + (forces - self.forces).square().sum() / 2
            + of_stress.square().sum() / 2
        )


def parameter_gradients_are_exact(
    candidate: Candidate, structures: Sequence[Structure], rng: np.random.Generator
) -> None:
    """Every parameter's gradient of a loss of energies, forces and stress is right.

    What autograd finds by differentiating the forces (double backward) is compared with the tangent route, parameter
    by parameter, and along drawn directions with finite differences of the loss. Potentials that are no
    `torch.nn.Module` or have no parameters to train have nothing to show.
    """
    model = candidate.potential
    if not isinstance(model, nn.Module):
        return
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    if not weights:
        return
    graph = candidate.graph(structures)
    with torch.no_grad():
        loss = ForceMatching.around(graph, model(graph, ("energy", "forces", "stress")), rng)
    where = f"{len(structures)} structures"
    backward = gradients_by_double_backward(model, graph, loss, weights)
    tangent = gradients_by_tangent(model, graph, loss, weights)
    largest = max(float(gradient.abs().max()) for gradient in tangent.values())
    for name, expected in tangent.items():
        law = f"the gradient of {name} by double backward is that of the tangent route, and"
        require_close(law, backward[name].numpy(), expected.numpy(), TOLERANCE * (1 + largest), where)
    _require_finite_differences(model, graph, loss, weights, backward, rng)


def gradients_by_double_backward(
    model: nn.Module, graph: AtomGraph, loss: ForceMatching, weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients of the loss in the weights through the forces and stress that the model gives."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    found = with_weights(model, leaves)(graph, ("energy", "forces", "stress"))
    return _gradients(loss(*_complete(found)), leaves)


def gradients_by_tangent(
    model: nn.Module, graph: AtomGraph, loss: ForceMatching, weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The same gradients without differentiating anything twice backwards.

    With g = ∂L/∂E, u = −∂L/∂F and w = (1/V) ∂L/∂σ at the present predictions, held fixed,
    ∂L/∂W = ∂_W [g · E + D_(u, w) E], where D is the derivative along moves u of the atoms and strains w. It is carried
    forward beside the energy (`torch.func.jvp`), and what comes out is taken back once.

    Uses the model's energies alone, which need a forward derivative.
    """
    with torch.no_grad():
        predicted = [value.detach().requires_grad_() for value in _complete(_all_of(model, graph))]
    with torch.enable_grad():
        to_energy, to_forces, to_stress = torch.autograd.grad(loss(*predicted), predicted)
    inverse = torch.where(loss.volumes > 0, 1 / loss.volumes.clamp(min=1e-300), 0.0)
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    potential = with_weights(model, leaves)

    def energies(positions: Tensor, strain: Tensor) -> Tensor:
        return potential(strained(graph.replace(positions=positions), strain), ("energy",)).energy

    places = (graph.positions, torch.zeros_like(graph.cells))
    along = (-to_forces, to_stress * inverse[:, None, None])
    carried: tuple[Tensor, Tensor] = torch.func.jvp(energies, places, along)  # type: ignore[assignment]
    energy, slope = carried
    return _gradients((to_energy * energy).sum() + slope.sum(), leaves)


def _require_finite_differences(
    model: nn.Module,
    graph: AtomGraph,
    loss: ForceMatching,
    weights: dict[str, Tensor],
    gradients: dict[str, Tensor],
    rng: np.random.Generator,
) -> None:
    """Compares with slopes of the loss along directions to which every tensor of parameters contributes alike."""
    offsets = np.array([-2, -1, 1, 2]) * _STEP
    for _ in range(_DIRECTIONS):
        direction = {
            name: torch.from_numpy(rng.normal(size=tuple(weight.shape))).to(weight) / weight.numel() ** 0.5
            for name, weight in weights.items()
        }
        losses = []
        for offset in offsets:
            moved = {name: weight + offset * direction[name] for name, weight in weights.items()}
            with torch.no_grad():
                losses.append(float(loss(*_complete(_all_of(with_weights(model, moved), graph)))))
        wide, narrow = (losses[3] - losses[0]) / (4 * _STEP), (losses[2] - losses[1]) / (2 * _STEP)
        found = sum(float((gradients[name] * along).sum()) for name, along in direction.items())
        # As for forces: extrapolated from two steps, whose difference bounds the error; and rounding of the loss.
        rounding = 1000 * float(np.finfo(np.float64).eps) * (1 + max(map(abs, losses))) / _STEP
        require_close(
            "the slope of the loss along a direction of all parameters",
            np.array(found),
            np.array((4 * narrow - wide) / 3),
            abs(narrow - wide) + rounding,
            f"{graph.structures} structures",
        )


def _all_of(potential: Potential, graph: AtomGraph) -> Properties:
    return potential(graph, ("energy", "forces", "stress"))


def _complete(found: Properties) -> tuple[Tensor, Tensor, Tensor]:
    if found.forces is None or found.stress is None:
        raise AssertionError("the potential was asked for forces and stress and gave None for one of them")
    return found.energy, found.forces, found.stress


def _gradients(loss: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(weights, gradients, strict=True))
