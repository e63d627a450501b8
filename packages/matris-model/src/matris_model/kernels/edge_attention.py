"""Attention of an atom over its messages by Triton kernels, with its first and second derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from janus_graph import EdgeTables
from janus_moe.kernels import require_kernels_run_on, tile_of
from matris_model.dense_attention import LARGEST_LOGIT, gathered_by_tables
from matris_model.geometry import Geometry
from matris_model.kernels.derivatives import Tensors, differentiable
from matris_model.kernels.edge_kernels import edge_gradient, edge_tangent, edge_value

# Features that a program takes at once. With more of them the second derivative needs more registers than there are.
_TILE_WIDTH = 16


def edge_attention(
    query: Float[Tensor, "atoms heads width"],
    messages: Float[Tensor, "edges width"],
    radial: Float[Tensor, "heads functions"],
    geometry: Geometry,
) -> Float[Tensor, "atoms heads width"]:
    """What each atom gathers from its messages: `dense_attention.edge_attention`.

    First and second derivatives are kernels too, backward and forward. Needs no tables in the geometry.

    Raises:
        ValueError: messages that are not on a CUDA device (outside Triton's interpreter), or of another precision than
            float32 and float64.
    """
    require_kernels_run_on(messages)
    bias = linear(geometry.radial, radial)
    return differentiable(EdgeKernels(geometry.around), query, messages, bias, geometry.envelope)


@dataclass(frozen=True, eq=False)
class EdgeKernels:
    """The attention as a function of queries, messages, logits and envelopes.

    Inputs are queries [atoms, heads, width], messages [edges, width], what distances add to the logits [edges, heads],
    and envelopes [edges].

    Attributes:
        around: where each atom's edges are.
    """

    around: EdgeTables

    def plain(self, *inputs: Tensor) -> Tensor:
        """What the kernels compute, in torch operations over dense tables."""
        query, messages, bias, envelope = inputs
        tables = self.around.spread(torch.cat([bias, envelope[:, None]], dim=1))
        parts = [(part[..., :-1], part[..., -1]) for part in tables]
        return gathered_by_tables(query, messages, self.around, parts)

    def value(self, *inputs: Tensor) -> Tensor:
        """O."""
        out = torch.zeros_like(inputs[0], memory_format=torch.contiguous_format)  # atoms without edges gather nothing
        self._launch(edge_value, inputs, out)
        return out

    def gradient(self, outer: Tensor, *inputs: Tensor) -> Tensors:
        """Gradients of Σ outer · O in the four inputs."""
        results = _results(inputs)
        self._launch(edge_gradient, (*inputs, outer), *results)
        return results

    def tangent(self, inputs: Tensors, along: Tensors) -> Tensor:
        """The derivative of O along moves of the four inputs."""
        out = torch.zeros_like(inputs[0], memory_format=torch.contiguous_format)
        # What only the gradients' tangents would read and write is left out of the kernel.
        self._launch(edge_tangent, (*inputs, *along, inputs[0]), out, *inputs, with_gradient=False)
        return out

    def curvature(self, outer: Tensor, inputs: Tensors, along: Tensors) -> Tensors:
        """The derivatives of O and of its gradients along moves of the four inputs."""
        out, *results = torch.zeros_like(outer, memory_format=torch.contiguous_format), *_results(inputs)
        self._launch(edge_tangent, (*inputs, *along, outer), out, *results, with_gradient=True)
        return out, *results

    def _launch(self, kernel: Any, inputs: Tensors, *results: Tensor, **options: bool) -> None:
        heads, width = inputs[0].shape[1:]
        read, first = [tensor.contiguous() for tensor in inputs], 0
        with torch.cuda.device_of(inputs[0]):
            for atoms, most in self.around.shapes:
                tile = tile_of(most, most * 2)
                kernel[(atoms,)](
                    *read, *results, self.around.atoms, self.around.starts, first,
                    heads=heads, width=width, largest=LARGEST_LOGIT, tile_heads=tile_of(heads, heads * 2), tile=tile,
                    tile_width=_TILE_WIDTH, num_warps=max(4, min(16, tile // 16)), num_stages=1, **options,
                )  # fmt: skip
                first += atoms


def _results(inputs: Tensors) -> Tensors:
    """Room for the gradients in the four inputs; atoms without edges have none in their queries."""
    query, *others = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)
    return query.zero_(), *others
