"""Forward derivatives beside values, block by block, with blocks that see ordinary tensors at their borders.

Inside :func:`tangent_level` a tensor may carry a tangent (a *dual*, `torch.autograd.forward_ad`), and every operation
carries it on. Hooks that surround a block (sharding, checkpointing) know nothing of that. So
:func:`carry_tangents` takes values and tangents apart before they reach the block's hooks, and puts them together
again inside and behind the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint as checkpointed

from janus_comm.structures import apart, fill
from janus_comm.tangent_rules import TangentRules, tangent_of, value_of


@contextmanager
def tangent_level() -> Iterator[None]:
    """Where tensors may carry tangents; inside another one, that one. Tangents are gone when it closes.

    One at a time in a process, whatever the threads: `torch.autograd.forward_ad` keeps no more.
    """
    # Inside the forward pass of an autograd.Function, as a recomputation's is, torch would carry nothing along.
    with forward_ad._set_fwd_grad_enabled(True):
        if in_tangent_level():
            yield
        else:
            with forward_ad.dual_level(), TangentRules():
                yield


def in_tangent_level() -> bool:
    """Whether tensors may carry tangents here."""
    return forward_ad._current_level >= 0


def on_value_and_tangent(linear: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """What a linear map makes of a tensor, and of its tangent where it carries one."""
    if not in_tangent_level():
        return linear(tensor)
    value, tangent = forward_ad.unpack_dual(tensor)
    return linear(value) if tangent is None else forward_ad.make_dual(linear(value), linear(tangent))


@dataclass(frozen=True)
class _Structure:
    """Something nested, with places for tensors."""

    places: Any


_Pairs: TypeAlias = tuple[_Structure, tuple[Tensor, ...], tuple["Tensor | None", ...]]
"""Something with tensors in it, its values, and their tangents where there are some: plain tuples, for hooks to see."""


def _values_and_tangents(value: Any) -> _Pairs:
    places, tensors = apart(value)
    return _Structure(places), tuple(map(value_of, tensors)), tuple(map(tangent_of, tensors))


def _duals(pairs: _Pairs) -> Any:
    structure, values, tangents = pairs
    duals = [
        value if tangent is None else forward_ad.make_dual(value, tangent)
        for value, tangent in zip(values, tangents, strict=True)
    ]
    return fill(structure.places, duals)


def carry_tangents(block: nn.Module, checkpoint: bool = False) -> None:
    """From now on the block takes and gives duals, while its hooks see values and tangents as tuples of tensors.

    Call it once on every block that stock tools surround, after them: after `fully_shard(block)`, say. Outside a
    tangent level the block is called as before.

    Args:
        block: a module that is called with tensors, or tuples, lists, dicts and dataclasses of them.
        checkpoint: keep only what goes in, values and tangents, and compute what is inside again when a derivative
            needs it. The block must not draw random numbers then.
    """
    forward = block.forward

    def on_pairs(structure: _Structure, values: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]) -> _Pairs:
        # A recomputation comes when the level of the first computation has closed: it has one of its own.
        with tangent_level():
            args, kwargs = _duals((structure, values, tangents))
            given, results, along = _values_and_tangents(forward(*args, **kwargs))
        # The value of a dual is a view, and hooks that watch a block's results lose a view that is changed in place.
        return given, tuple(each.clone() if each._is_view() else each for each in results), along

    def run(*args: Any, **kwargs: Any) -> Any:
        again = checkpoint and torch.is_grad_enabled()
        if args and isinstance(args[0], _Structure):
            return _computed_again(on_pairs, args) if again else on_pairs(*args)
        return recompute_block(forward, *args, **kwargs) if again else forward(*args, **kwargs)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        return (_values_and_tangents((args, kwargs)), {}) if in_tangent_level() else None

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        paired = isinstance(output, tuple) and output and isinstance(output[0], _Structure)
        return _duals(output) if paired else output

    block.forward = run
    block.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
    block.register_forward_hook(after)


def recompute_block(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the function gives; only what goes in is kept, and it is computed again when a derivative needs it.

    torch's random numbers are left alone, as energies are no matter of chance: setting them back would lock their
    generator, which is the process's, against Python's own lock, and ranks that are threads would wait for each other.
    """
    return checkpointed(function, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _computed_again(function: Callable[..., _Pairs], pairs: _Pairs) -> _Pairs:
    """What a function of pairs gives; backward it is computed once more, and differentiated then.

    Not `torch.utils.checkpoint` without reentrance: that builds a graph in the forward pass already, whose nodes hold
    on to the tangents of what they would have kept, block by block, until the level closes.
    """
    structure, values, tangents = pairs
    moving = [place for place, tangent in enumerate(tangents) if tangent is not None]
    shapes: list[tuple[_Structure, int, list[int]]] = []

    def of_tensors(*given: Tensor) -> tuple[Tensor, ...]:
        along = _spread(given[len(values) :], moving, len(values))
        result, got, got_along = function(structure, given[: len(values)], along)
        places = [place for place, tangent in enumerate(got_along) if tangent is not None]
        shapes.append((result, len(got), places))
        return (*got, *(tangent for tangent in got_along if tangent is not None))

    # Also where no input needs a gradient, parameters inside do.
    anchor = torch.zeros((), requires_grad=True)
    given = (*values, *(tangent for tangent in tangents if tangent is not None))
    got: tuple[Tensor, ...] = _Again.apply(of_tensors, anchor, *given)  # type: ignore[no-untyped-call]
    result, count, places = shapes[0]
    return result, got[:count], _spread(got[count:], places, count)


def _spread(tensors: Sequence[Tensor], places: Sequence[int], count: int) -> tuple[Tensor | None, ...]:
    """Tensors at these places of so many, and None at the others."""
    at = dict(zip(places, tensors, strict=True))
    return tuple(at.get(place) for place in range(count))


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., tuple[Tensor, ...]], _: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.function = function
        ctx.save_for_backward(*tensors)
        results = function(*tensors)
        ctx.mark_non_differentiable(*(each for each in results if not each.is_floating_point()))
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        given = [tensor.detach().requires_grad_(need) for tensor, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            results = ctx.function(*given)
        pairs = [
            (result, cotangent)
            for result, cotangent in zip(results, cotangents, strict=True)
            if cotangent is not None and result.requires_grad
        ]
        torch.autograd.backward([result for result, _ in pairs], [cotangent for _, cotangent in pairs])
        return (None, None, *(tensor.grad for tensor in given))


def with_tangents(
    function: Callable[..., Any], inputs: Sequence[Tensor], directions: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What a function gives, one tensor or several, and the derivatives of these along directions of the inputs.

    Both are ordinary tensors, and differentiable in whatever else the function depends on.
    """
    with tangent_level():
        duals = [forward_ad.make_dual(value, along) for value, along in zip(inputs, directions, strict=True)]
        _, values, tangents = _values_and_tangents(as_tuple(function(*duals)))
    filled = (
        torch.zeros_like(value) if tangent is None else tangent for value, tangent in zip(values, tangents, strict=True)
    )
    return values, tuple(filled)


def as_tuple(value: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One tensor or several as a tuple."""
    return (value,) if isinstance(value, Tensor) else tuple(value)
