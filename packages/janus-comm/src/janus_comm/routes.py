"""Two routes to the gradient of a loss of energies and their derivatives (forces, stress).

A loss L(E, G) of energies E(x; W) and their gradient G = ∂ΣE/∂x (minus the forces; the stress times the volume, where
x is a strain) has a gradient in the parameters W that contains second derivatives of E. Two ways lead to it, and share
no mechanism, so that each is the other's oracle:

* :func:`by_double_backward` keeps the inner gradient G differentiable and goes backward through all of it;
* :func:`by_tangent` computes G, holds g = ∂L/∂E and v = ∂L/∂G fixed, and differentiates g·E + D_v ΣE once, where the
  derivative D_v along v is carried forward beside the values. Nothing is differentiated backward twice, so tools that
  know first derivatives only (FSDP2, reentrant checkpoints) can be used.

In units of a plain forward pass, double backward costs 6 (1 forward, 1 inner, 4 outer), and 8 when blocks are
computed again; the tangent route costs 8 (1 forward, 1 inner, 2 tangent, 4 outer), and 11.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from janus_comm.chain import connect
from janus_comm.tangent_rules import MissingDerivative
from janus_comm.tangents import as_tuple, with_tangents

Potential: TypeAlias = Callable[..., "Tensor | Sequence[Tensor]"]
"""Inputs (positions, strains) in, energies out; or several tensors, the first of them energies."""

Loss: TypeAlias = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], Tensor]
"""The loss of what the potential gives and of the gradients of Σ energies in the inputs."""

Phases: TypeAlias = Callable[[str], AbstractContextManager[None]]
"""Entered with the name of each phase of a step: ``forward``, ``inner``, ``tangent`` on that route, ``outer``."""


def no_phases(name: str) -> AbstractContextManager[None]:
    """Nobody wants to know which phase of a step it is."""
    return nullcontext()


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What a step saw, detached.

    Attributes:
        loss: the loss.
        outputs: what the potential gave, energies first.
        gradients: of the sum of the energies, one for each input.
    """

    loss: Float[Tensor, ""]
    outputs: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]


def by_double_backward(
    potential: Potential, inputs: Sequence[Float[Tensor, "..."]], loss: Loss, phases: Phases = no_phases
) -> Evaluated:
    """Adds the gradient of the loss to the ``grad`` of every parameter, by a backward pass through an inner one.

    The backward pass finishes with the inner pass before it goes through the forward pass, on every device.

    Raises MissingDerivative when an operation of the model has no second derivative.
    """
    with _naming_operations():
        leaves, outputs, energies = _forward(potential, inputs, phases)
        with phases("inner"):
            # A seed that hangs on the energies: its zero gradient reaches them behind all of the inner pass's.
            seed = connect(torch.ones_like(energies), energies)
            gradients = torch.autograd.grad(energies, leaves, seed, create_graph=True)
        with phases("outer"):
            value = loss((energies, *outputs[1:]), gradients)
            connect(value, energies, *gradients).backward()  # through the inner pass, whatever the loss is of
    return Evaluated(value.detach(), _detached(outputs), _detached(gradients))


def by_tangent(
    potential: Potential, inputs: Sequence[Float[Tensor, "..."]], loss: Loss, phases: Phases = no_phases
) -> Evaluated:
    """Adds the gradient of the loss to the ``grad`` of every parameter, by first derivatives alone.

    The potential is called twice: for energies and forces, and with tangents. Blocks of it that are sharded or
    checkpointed must carry tangents (:func:`janus_comm.carry_tangents`).

    Raises MissingDerivative when an operation of the model has no forward derivative.
    """
    with _naming_operations():
        outputs, gradients = _force_pass(potential, inputs, phases)
        held = [value.detach().requires_grad_() for value in (*outputs, *gradients)]
        value = loss(tuple(held[: len(outputs)]), tuple(held[len(outputs) :]))
        connect(value, *held).backward()
        cotangents = [_gradient(tensor) for tensor in held]
        seen = Evaluated(value.detach(), outputs, gradients)
        with phases("tangent"):
            directions = cotangents[len(outputs) :]
            outputs, tangents = with_tangents(potential, [given.detach() for given in inputs], directions)
        with phases("outer"):
            total = tangents[0].sum()
            for output, cotangent in zip(outputs, cotangents, strict=False):
                total = total + (output * cotangent).sum()
            if total.requires_grad:
                total.backward()
    return seen


def evaluate(
    potential: Potential, inputs: Sequence[Float[Tensor, "..."]], phases: Phases = no_phases
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What the potential gives, and the gradients of Σ energies in the inputs: detached, and nothing is kept.

    For validation and simulation; parameters get no gradient. The phases are those of a step, without ``outer``, inside
    one that is called ``evaluation``.
    """
    with phases("evaluation"):
        return _force_pass(potential, inputs, phases)


def _force_pass(
    potential: Potential, inputs: Sequence[Tensor], phases: Phases
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    leaves, outputs, energies = _forward(potential, inputs, phases)
    with phases("inner"):
        gradients = torch.autograd.grad(energies, leaves, torch.ones_like(energies))
    return _detached(outputs), gradients


def _forward(
    potential: Potential, inputs: Sequence[Tensor], phases: Phases
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
    """The inputs as leaves, what the potential gives, and its energies as a function of all leaves."""
    leaves = tuple(value.detach().requires_grad_() for value in inputs)
    with phases("forward"):
        outputs = as_tuple(potential(*leaves))
        return leaves, outputs, connect(outputs[0], *leaves)


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def _detached(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(each.detach() for each in tensors)


_UNKNOWN_DERIVATIVE = re.compile(r"derivative for '?(?P<operation>[\w:]+)'? is not implemented")
_ONCE_ONLY = "trying to differentiate twice a function that was marked with @once_differentiable"
_NO_JVP = "must implement the jvp function"


@contextmanager
def _naming_operations() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        told = str(error)
        if found := _UNKNOWN_DERIVATIVE.search(told):
            operation, advice = found["operation"], "index_add for segment_reduce, a norm for cdist"
        elif _ONCE_ONLY in told:
            operation, advice = "an autograd.Function marked @once_differentiable", "or take the tangent route"
        elif _NO_JVP in told:
            operation = f"the autograd.Function {_function_without_jvp(error)}"
            advice = "or give it a jvp, or take the route by double backward"
        else:
            raise
        raise MissingDerivative(
            f"{operation} lacks a derivative that training on forces needs; write it with other operations ({advice})"
        ) from error


def _function_without_jvp(error: BaseException) -> str:
    """The name of the function, which torch does not tell but its frame knows."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    context = None if trace is None else trace.tb_frame.f_locals.get("ctx")
    return type(context).__name__.removesuffix("Backward")
