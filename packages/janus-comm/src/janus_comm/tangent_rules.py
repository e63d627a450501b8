"""Forward derivatives of operations that torch has none of, wrong ones, or expensive ones.

Rules are written with operations whose forward derivative torch can differentiate backward. Outside a tangent level,
and for tensors without a tangent, operations are called as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from janus_comm.structures import apart, fill


class MissingDerivative(RuntimeError):
    """An operation of a model lacks the derivative that a route to the gradient needs."""


class TangentRules(TorchFunctionMode):
    """The rules of this module instead of torch's.

    * Products: torch's rule of a product with a matrix that carries no tangent multiplies by a matrix of zeros as well,
      so that the forward derivative of a chain of linear layers costs three products a layer instead of two, and its
      backward pass another one.
    * ``grouped_mm`` has no forward derivative.
    * ``layer_norm`` has one whose gradient is silently wrong, and those of softmax, ``logsumexp`` and attention fail in
      the backward pass (torch 2.13).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS:
            return _multilinear(func, args, kwargs)
        rule = _RULES.get(func)
        if rule is not None and _moves(args, kwargs):
            return rule(*args, **kwargs)
        try:
            return func(*args, **kwargs)
        except NotImplementedError as error:
            if "forward AD" not in str(error):
                raise
            raise MissingDerivative(
                f"{getattr(func, '__name__', func)} has no forward derivative, which the tangent route needs; "
                "write it with other operations, or take the route by double backward"
            ) from error


_PRODUCTS: frozenset[Any] = frozenset(
    function
    for name in ("matmul", "mm", "bmm", "mv", "dot", "einsum", "tensordot", "outer", "kron", "inner")
    for function in (getattr(torch, name), getattr(Tensor, name, None))
    if function is not None
) | {Tensor.__matmul__, Tensor.__rmatmul__, torch._grouped_mm}


def _moves(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    _, tensors = apart((args, kwargs))
    return any(tangent_of(tensor) is not None for tensor in tensors)


def tangent_of(tensor: Tensor) -> Tensor | None:
    """What a tensor carries along."""
    return forward_ad.unpack_dual(tensor).tangent if tensor.is_floating_point() else None


def value_of(tensor: Tensor) -> Tensor:
    """A tensor without what it carries along."""
    return forward_ad.unpack_dual(tensor).primal if tensor.is_floating_point() else tensor


def _multilinear(func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A function that is linear in each of its tensors by itself: the product rule, over those that have a tangent."""
    places, operands = apart((args, kwargs))
    tangents = {index: tangent for index, each in enumerate(operands) if (tangent := tangent_of(each)) is not None}
    if not tangents:
        return func(*args, **kwargs)
    values = [value_of(operand) for operand in operands]

    def product(tensors: Sequence[Tensor]) -> Tensor:
        filled_args, filled_kwargs = fill(places, tensors)
        return func(*filled_args, **filled_kwargs)

    along: Tensor | None = None
    for index, tangent in tangents.items():
        term = product([tangent if other == index else value for other, value in enumerate(values)])
        along = term if along is None else along + term
    return forward_ad.make_dual(product(values), along)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result = _multilinear(nn.functional.linear, (input, weight), {})
    return result if bias is None else result + bias


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(dims, keepdim=True)
    result = centred * torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)
    if weight is not None:
        result = result * weight
    return result if bias is None else result + bias


def _exp_of_shifted(input: Tensor, dim: Any) -> tuple[Tensor, Tensor]:
    # Any constant will do as a shift, and an infinite one (a row that is masked altogether) none.
    shift = value_of(input).detach().amax(dim, keepdim=True)
    shift = torch.where(shift.isfinite(), shift, torch.zeros_like(shift))
    return torch.exp(input - shift), shift


def _softmax(input: Tensor, dim: int, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Tensor:
    weights, _shift = _exp_of_shifted(input if dtype is None else input.to(dtype), dim)
    return weights / weights.sum(dim, keepdim=True)


def _logsumexp(input: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    weights, shift = _exp_of_shifted(input, dim)
    result = torch.log(weights.sum(dim, keepdim=True)) + shift
    return result if keepdim else result.squeeze(dim)


def _log_softmax(input: Tensor, dim: int, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Tensor:
    input = input if dtype is None else input.to(dtype)
    return input - _logsumexp(input, dim, keepdim=True)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if dropout_p or enable_gqa:
        raise MissingDerivative("scaled_dot_product_attention with dropout or enable_gqa has no rule for tangents")
    scores = (query @ key.transpose(-2, -1)) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return _softmax(scores, -1) @ value


_RULES: dict[Any, Callable[..., Tensor]] = {
    nn.functional.linear: _linear,
    nn.functional.layer_norm: _layer_norm,
    nn.functional.scaled_dot_product_attention: _attention,
    **dict.fromkeys((torch.softmax, Tensor.softmax, nn.functional.softmax), _softmax),
    **dict.fromkeys((torch.log_softmax, Tensor.log_softmax, nn.functional.log_softmax), _log_softmax),
    **dict.fromkeys((torch.logsumexp, Tensor.logsumexp), _logsumexp),
}
