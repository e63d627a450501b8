"""Gradients of a loss of forces and stress: right, and the same however blocks are run."""

import pytest
import torch

from janus_graph import build_graph
from matris_model import MatRISMoE, call_block, checkpoint_block
from model_cases import EVERYWHERE, TINY, molecule, random_structure, stirred

GRAPH = build_graph(
    [
        random_structure(2, 3, (2, 2, 1), EVERYWHERE, skewed=True),
        random_structure(1, 1, (1, 1, 1), EVERYWHERE),
        molecule([8, 6, 8], [[-1.2, 0, 0], [0, 0, 0], [1.3, 0, 0]], charge=1, spin=2, task=1),
    ],
    TINY.cutoff,
    TINY.near_cutoff,
)


def loss_of(model, run_block=call_block):
    found = model(GRAPH, ("energy", "forces", "stress", "magmoms"), run_block=run_block)
    weights = torch.linspace(0.5, 1.5, GRAPH.atoms, dtype=torch.float64)[:, None]
    return (
        found.energy.square().sum()
        + (weights * found.forces.square()).sum()
        + 10 * found.stress.square().sum()
        + found.magmoms.square().sum()
    )


def gradients_of(model, run_block=call_block):
    model.zero_grad()
    loss_of(model, run_block).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_every_parameter_gets_a_gradient():
    model = stirred()
    gradients = gradients_of(model)
    for name, gradient in gradients.items():
        assert gradient.any(), name
        assert bool(torch.isfinite(gradient).all()), name


def test_blocks_that_are_computed_again_give_the_same_gradients():
    model = stirred()
    kept, again = gradients_of(model, call_block), gradients_of(model, checkpoint_block)
    for name, expected in kept.items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(again[name], expected, rtol=0, atol=1e-12 * max(1.0, scale), msg=name)


def test_blocks_that_are_computed_again_keep_fewer_tensors():
    model = stirred()

    def kept_by(run_block):
        elements = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: elements.append(t.numel()) or t, lambda t: t):
            model.energies(GRAPH, run_block=run_block)
        return sum(elements)

    assert kept_by(checkpoint_block) < kept_by(call_block) / 2


def test_gradients_of_a_loss_of_forces_and_stress_are_the_limit_of_finite_differences():
    model = stirred()
    gradients = gradients_of(model)
    step = 1e-4
    parameters = dict(model.named_parameters())
    for name in gradients:
        parameter = parameters[name]
        place = int(gradients[name].abs().argmax())
        flat = parameter.data.view(-1)
        start, losses = float(flat[place]), []
        for offset in (-2, -1, 1, 2):
            flat[place] = start + offset * step
            losses.append(float(loss_of(model).detach()))
        flat[place] = start
        expected = (losses[0] - 8 * losses[1] + 8 * losses[2] - losses[3]) / (12 * step)
        found = float(gradients[name].view(-1)[place])
        # Fourth order in the step, and rounding of the loss over the step.
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-9 * losses[0]), name


def test_a_few_steps_of_descent_lower_a_loss_of_forces():
    model = stirred(TINY.replace(blocks=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_a_block_of_the_smallest_published_size_learns():
    # One of the six blocks of S with all its 128 experts: a fifth of a billion parameters, in float32 as it is trained.
    model = MatRISMoE.from_preset("S", blocks=1).float()
    structure = random_structure(0, 2, (1, 1, 1), EVERYWHERE)
    graph = build_graph([structure], model.config.cutoff, model.config.near_cutoff)

    def loss():
        found = model(graph, ("energy", "forces", "stress"))
        return (found.energy - 1.0).square().sum() + found.forces.square().sum() + found.stress.square().sum()

    first = loss()
    first.backward()
    before = first.item()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    square = sum(float(gradient.square().sum()) for gradient in gradients)
    assert 0 < square < float("inf")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 * before / square * parameter.grad
    # Along the gradient, a step that should take a hundredth of the loss away takes about that much.
    assert 0.9 < loss().item() / before < 0.999
