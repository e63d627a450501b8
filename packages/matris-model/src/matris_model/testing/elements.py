"""Laws 6 and 7: every element is defined or refused by name, and experts of absent elements play no part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from janus_graph import HIGHEST_ATOMIC_NUMBER, Structure
from janus_moe import MoELayer
from matris_model.elements import CHEMICAL_SYMBOLS
from matris_model.testing.candidate import TOLERANCE, Candidate, Values, require_close, require_same, with_weights

# Structures that are tried with experts spoiled: each takes a copy of the model.
_MOST_STRUCTURES = 3


def elements_are_defined_or_refused(
    candidate: Candidate, structures: Sequence[Structure], rng: np.random.Generator
) -> None:
    """One atom has an energy and no force; one element, and all elements at once, have finite values.

    All 118 elements are tried where the potential has `check_elements(atomic_numbers)`, which lets those pass that it
    knows and raises a ValueError that names the others by their symbols; elsewhere those of the structures.
    """
    known = _known_elements(candidate, structures)
    if not known:
        return
    task = structures[0].task if structures else 0

    def isolated(numbers: Sequence[int], positions: np.ndarray) -> Structure:
        return Structure(np.array(numbers), positions, np.zeros((3, 3)), np.zeros(3, dtype=bool), task=task)

    nothing = np.zeros((1, 3))
    for z, found in zip(known, candidate([isolated([z], rng.normal(size=(1, 3))) for z in known]), strict=True):
        where = f"one atom of {CHEMICAL_SYMBOLS[z]}"
        _require_finite(found, where)
        require_close("one atom has no force (eV/Å)", found.forces, nothing, 0.0, where)
    spacing = 0.8 * candidate.near_cutoff
    pair = np.array([[0.0, 0.0, 0.0], [spacing, 0.0, 0.0]])
    for z, found in zip(known, candidate([isolated([z, z], pair) for z in known]), strict=True):
        _require_finite(found, f"two atoms of {CHEMICAL_SYMBOLS[z]}")
    side = int(np.ceil(len(known) ** (1 / 3)))
    places = np.array(list(np.ndindex(side, side, side)))[: len(known)]
    crowd = isolated(known, spacing * (places + rng.uniform(-0.1, 0.1, size=(len(known), 3))))
    found = candidate.alone(crowd)
    _require_finite(found, "one atom of each known element")
    allowed = TOLERANCE * len(known) * (1 + float(np.abs(found.forces).max()))
    require_close("forces add up to zero (eV/Å)", found.forces.sum(axis=0), np.zeros(3), allowed, "all known elements")


def idle_experts_are_never_read(
    candidate: Candidate, structures: Sequence[Structure], rng: np.random.Generator
) -> None:
    """Experts that no element of a structure selects can hold anything: results and other gradients stay the same.

    For up to three drawn structures they are filled with NaN. So a model cut down to the experts of some elements is
    the same model for those elements. Concerns modules with a `janus_moe.MoELayer`; others have nothing to show.
    """
    model = candidate.potential
    if not isinstance(model, nn.Module):
        return
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, MoELayer)}
    drawn = rng.permutation(len(structures))[:_MOST_STRUCTURES] if layers else ()
    for structure in (structures[place] for place in drawn):
        idle = {
            f"{name}.experts.{weight}": _idle(layer, structure)
            for name, layer in layers.items()
            for weight, _ in layer.experts.named_parameters()
        }
        weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        before = _force_gradients(candidate, model, weights, structure)
        for name, experts in idle.items():
            weights[name][experts] = torch.nan
        spoiled = Candidate(with_weights(model, weights), candidate.cutoff, candidate.near_cutoff)
        require_same("experts of absent elements", spoiled.alone(structure), candidate.alone(structure), structure)
        after = _force_gradients(candidate, model, weights, structure)
        for name, gradient in after.items():
            allowed = TOLERANCE * (1 + float(before[name].abs().max()))
            law = f"experts of absent elements: gradient of {name}"
            require_close(law, gradient.numpy(), before[name].numpy(), allowed, structure)


def _known_elements(candidate: Candidate, structures: Sequence[Structure]) -> list[int]:
    check = getattr(candidate.potential, "check_elements", None)
    if check is None:
        return sorted({int(z) for structure in structures for z in structure.atomic_numbers})
    known = []
    for z in range(1, HIGHEST_ATOMIC_NUMBER + 1):
        try:
            check([z])
        except ValueError as error:
            if CHEMICAL_SYMBOLS[z] not in str(error):
                raise AssertionError(
                    f"broken law: an unknown element is refused by name, but for {CHEMICAL_SYMBOLS[z]} it says: {error}"
                ) from error
        else:
            known.append(z)
    return known


def _require_finite(found: Values, where: str) -> None:
    for name, values in (("energy", found.energy), ("forces", found.forces), ("stress", found.stress)):
        if not np.isfinite(values).all():
            raise AssertionError(f"broken law: {name} is defined, but it is {values}: {where}")


def _idle(layer: MoELayer, structure: Structure) -> Tensor:
    selection = layer.router.selection
    idle = torch.ones(layer.router.logits.shape[1], dtype=torch.bool, device=selection.device)
    idle[selection[torch.from_numpy(np.unique(structure.atomic_numbers)).to(selection.device)].flatten()] = False
    return idle


def _force_gradients(
    candidate: Candidate, model: nn.Module, weights: dict[str, Tensor], structure: Structure
) -> dict[str, Tensor]:
    """Gradients of the sum of squared forces and energies in each of the weights."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    found = with_weights(model, leaves)(candidate.graph([structure]), ("energy", "forces"))
    if found.forces is None:
        raise AssertionError("the potential was asked for forces and gave None")
    loss = found.energy.sum() + found.forces.square().sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True))
