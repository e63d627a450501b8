"""What computes fast against what computes plainly, before anything is learnt with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from janus_graph import AtomGraph, build_graph
from janus_train.failure import UserError
from matris_model import PLAIN, Formulas, MatRISMoE, golden_structures

# Units of the weights' precision times the size of what is compared. Compiled formulas came within 8 of the plain ones
# on two presets, and single precision within 28 of double.
ROUNDINGS = 300.0


def check_formulas(model: MatRISMoE, formulas: Formulas, device: torch.device) -> None:
    """Compares these formulas with the plain ones, on a few structures of the model's elements and tasks: energies,
    forces and stress, and the gradient of a loss of all three in every parameter.

    In a model of the same widths, heads and cutoffs with two blocks and as many experts as an element uses, in the
    precision of the weights: what is compared is how it computes, not what it has learnt.

    Args:
        model: on any device, the meta device too.
        formulas: it computes with.
        device: where they are to be used.

    Raises:
        UserError: says what differs, by how much, and what to do.
    """
    if formulas is PLAIN:
        return
    shape = model.config.replace(blocks=min(model.config.blocks, 2), experts=model.config.top_k)
    plain, fast = (MatRISMoE(shape, 0, made).to(device, model.dtype) for made in (PLAIN, formulas))
    graph = build_graph(golden_structures(plain), shape.cutoff, shape.near_cutoff).to(device)
    expected, found = values_and_gradients(plain, graph), values_and_gradients(fast, graph)
    for name, off, size in differences(expected, found):
        allowed = ROUNDINGS * torch.finfo(model.dtype).eps * size
        if not off <= allowed:
            raise UserError(
                f"the fast formulas (model.fused, model.triton) do not compute what the plain ones do on {device}: "
                f"{name} differs by {off:.2e} on small structures, and {allowed:.1e} is allowed. Leave the switch out; "
                "the versions of torch and triton, or the device's driver, do not go together with these kernels"
            )


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterator[tuple[str, float, float]]:
    """The largest difference of each kind of value, and the size it is to be judged by: the largest value of that kind
    and a hundredth of the largest of all kinds."""
    largest = max(float(values.abs().max()) for values in expected.values() if values.numel())
    for name, values in expected.items():
        if values.numel():
            off = float((found[name].to(values.device) - values).abs().max())
            yield name, off, float(values.abs().max()) + largest / 100


def values_and_gradients(model: MatRISMoE, graph: AtomGraph) -> Mapping[str, Tensor]:
    """Energies, forces, stress, and what a loss of them has as gradients, in float64."""
    found = model(graph, ("energy", "forces", "stress"))
    assert found.forces is not None
    assert found.stress is not None
    loss = found.energy.sum() + found.forces.square().sum() + found.stress.sum()
    weights = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
    values = {"energy": found.energy, "forces": found.forces, "stress": found.stress}
    values |= {f"the gradient of {name}": gradient for name, gradient in zip(weights, gradients, strict=True)}
    return {name: value.detach().double() for name, value in values.items()}
