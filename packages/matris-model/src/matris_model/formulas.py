"""How the parts of a block are computed, in one place, so that they can be compiled together or replaced."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from janus_moe import GroupedProduct, TensorFunction, fused, gated_silu, grouped_product
from matris_model.dense_attention import edge_attention, edge_weights, near_attention, near_weights
from matris_model.geometry import Geometry

NORM_EPS = 1e-5
"""Of all normalisations. Fixed, so that what a model computes does not depend on its precision."""


def rms_norm(features: Float[Tensor, "rows width"], weight: Float[Tensor, "width"]) -> Float[Tensor, "rows width"]:
    """`weight · x / √(mean x² + eps)`, row by row."""
    return torch.nn.functional.rms_norm(features, weight.shape, weight, NORM_EPS)


class NearAttention(Protocol):
    """Attention among the near edges of each atom, as `near_attention` computes it; differentiable twice."""

    def __call__(
        self,
        rows: Float[Tensor, "near width3"],
        bias: Float[Tensor, "heads functions"],
        angular_filter: Float[Tensor, "heads functions"],
        geometry: Geometry,
    ) -> Float[Tensor, "near width"]:
        """What each near edge takes of the values of the others around its atom."""
        ...


class EdgeAttention(Protocol):
    """Attention of each atom over its messages, as `edge_attention` computes it; differentiable twice."""

    def __call__(
        self,
        query: Float[Tensor, "atoms heads width"],
        messages: Float[Tensor, "edges width"],
        radial: Float[Tensor, "heads functions"],
        geometry: Geometry,
    ) -> Float[Tensor, "atoms heads width"]:
        """What each atom gathers from its messages, head by head."""
        ...


@dataclass(frozen=True)
class Formulas:
    """How the parts of a block are computed.

    Attributes:
        norm: `rms_norm`, or an equal.
        activation: `janus_moe.gated_silu`, or an equal.
        product: how experts multiply rows by the matrix of their element.
        near_attention: `dense_attention.near_attention`, or an equal.
        edge_attention: `dense_attention.edge_attention`, or an equal.
        tables: whether an attention reads the geometry's dense tables, which are not made otherwise.
    """

    norm: TensorFunction
    activation: TensorFunction
    product: GroupedProduct
    near_attention: NearAttention
    edge_attention: EdgeAttention
    tables: bool = True


PLAIN = Formulas(rms_norm, gated_silu, grouped_product, near_attention, edge_attention)
"""One torch operation after the other: no waiting, no compiler."""


def fused_formulas() -> Formulas:
    """The same with every elementwise formula one compiled kernel, and so are its first two derivatives."""
    return Formulas(
        norm=fused(rms_norm),
        activation=fused(gated_silu),
        product=grouped_product,
        near_attention=partial(near_attention, weights=fused(near_weights)),
        edge_attention=partial(edge_attention, weights=fused(edge_weights)),
    )


def triton_formulas(rest: Formulas = PLAIN) -> Formulas:
    """Both attentions as Triton kernels, for GPUs; everything else as in `rest`.

    Kernels are there for the first two derivatives, backward and forward, and compute in the model's precision without
    TF32. Nothing over pairs of edges is ever in memory, and no dense tables are made. Experts' products are not among
    them: on an H200 `janus_moe.kernels.triton_product` was no faster than `grouped_product` with narrow matrices, and
    half as fast with wide ones.

    Args:
        rest: how norms, activations and products are computed; `fused_formulas()` compiles them.

    Raises:
        ImportError: Triton is not installed.
    """
    from matris_model.kernels.edge_attention import edge_attention  # Triton is an extra
    from matris_model.kernels.near_attention import near_attention

    return replace(rest, near_attention=near_attention, edge_attention=edge_attention, tables=False)
