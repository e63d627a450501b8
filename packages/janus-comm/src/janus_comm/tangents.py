"""Forward derivatives beside values, block by block, with blocks that see ordinary tensors at their borders.

Inside :func:`tangent_level` a tensor may carry a tangent (a *dual*, `torch.autograd.forward_ad`), and every operation
carries it on. Hooks that surround a block (sharding, checkpointing) know nothing of that. So
:func:`carry_tangents` takes values and tangents apart before they reach the block's hooks, and puts them together
again inside and behind the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint as recompute

from janus_comm.structures import apart, fill
from janus_comm.tangent_rules import TangentRules, tangent_of, value_of


@contextmanager
def tangent_level() -> Iterator[None]:
    """Where tensors may carry tangents; inside another one, that one. Tangents are gone when it closes.

    One at a time in a process, whatever the threads: `torch.autograd.forward_ad` keeps no more.
    """
    if in_tangent_level():
        yield
        return
    with forward_ad.dual_level(), TangentRules():
        yield


def in_tangent_level() -> bool:
    """Whether tensors may carry tangents here."""
    return forward_ad._current_level >= 0


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
            needs it.
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
        function: Callable[..., Any] = on_pairs if args and isinstance(args[0], _Structure) else forward
        if checkpoint and torch.is_grad_enabled():
            return recompute(function, *args, use_reentrant=False, **kwargs)
        return function(*args, **kwargs)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        return (_values_and_tangents((args, kwargs)), {}) if in_tangent_level() else None

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        paired = isinstance(output, tuple) and output and isinstance(output[0], _Structure)
        return _duals(output) if paired else output

    block.forward = run
    block.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
    block.register_forward_hook(after)


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


def no_phases(name: str) -> AbstractContextManager[None]:
    """Nobody wants to know which phase of a step it is."""
    return nullcontext()
