"""Attention among the near edges of an atom by Triton kernels, with its first and second derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from janus_graph import EdgeTables
from janus_moe.kernels import require_kernels_run_on, tile_of
from matris_model.dense_attention import attention_of_tables
from matris_model.geometry import Geometry, near_tables
from matris_model.kernels.derivatives import Tensors, differentiable
from matris_model.kernels.near_kernels import near_gradient, near_tangent, near_value

# Edges p that a program takes at once.
_TILE = 16


def near_attention(
    rows: Float[Tensor, "near width3"],
    bias: Float[Tensor, "heads functions"],
    angular_filter: Float[Tensor, "heads functions"],
    geometry: Geometry,
) -> Float[Tensor, "near width"]:
    """What each near edge takes of the values of the others around its atom: `dense_attention.near_attention`.

    First and second derivatives are kernels too, backward and forward. Needs no tables in the geometry.

    Raises:
        ValueError: rows that are not on a CUDA device (outside Triton's interpreter), or neither float32 nor float64.
    """
    require_kernels_run_on(rows)
    coefficients = torch.cat([bias, angular_filter])
    return differentiable(NearKernels(geometry.near), rows, geometry.near_rows, coefficients)


@dataclass(frozen=True, eq=False)
class NearKernels:
    """The attention as a function of rows, directions and coefficients.

    Inputs are queries, keys and values [near, 3 width], unit vectors and envelopes [near, 4], and coefficients of
    Legendre polynomials in the logits and in the filter [2 heads, functions].

    Attributes:
        near: where each atom's near edges are.
    """

    near: EdgeTables

    def plain(self, *inputs: Tensor) -> Tensor:
        """What the kernels compute, in torch operations over dense tables."""
        rows, directions, coefficients = inputs
        tables = near_tables(self.near, directions, coefficients.shape[1])
        return attention_of_tables(rows, coefficients, self.near, tables)

    def value(self, *inputs: Tensor) -> Tensor:
        """O."""
        out = inputs[0].new_empty(inputs[0].shape[0], inputs[0].shape[1] // 3)
        self._launch(near_value, inputs, out)
        return out

    def gradient(self, outer: Tensor, *inputs: Tensor) -> Tensors:
        """Gradients of Σ outer · O in the three inputs."""
        results = self._results(inputs)
        self._launch(near_gradient, (*inputs, outer), *results)
        return _added_up(results, inputs)

    def tangent(self, inputs: Tensors, along: Tensors) -> Tensor:
        """The derivative of O along moves of the three inputs."""
        out = inputs[0].new_empty(inputs[0].shape[0], inputs[0].shape[1] // 3)
        # What only the gradients' tangents would read and write is left out of the kernel.
        self._launch(near_tangent, (*inputs, *along, out), out, *self._results(inputs), with_gradient=False)
        return out

    def curvature(self, outer: Tensor, inputs: Tensors, along: Tensors) -> Tensors:
        """The derivatives of O and of its gradients along moves of the three inputs."""
        out, results = torch.empty_like(outer, memory_format=torch.contiguous_format), self._results(inputs)
        self._launch(near_tangent, (*inputs, *along, outer), out, *results, with_gradient=True)
        return out, *_added_up(results, inputs)

    def _results(self, inputs: Tensors) -> Tensors:
        """Room for gradients in rows; in directions, apart for p and q and each head; in coefficients, atom by atom."""
        rows, directions, coefficients = inputs
        heads = coefficients.shape[0] // 2
        return (
            torch.empty_like(rows, memory_format=torch.contiguous_format),
            directions.new_empty(2, heads, *directions.shape),
            coefficients.new_empty(self.near.atoms.shape[0], *coefficients.shape),
        )

    def _launch(self, kernel: Any, inputs: Tensors, *results: Tensor, **options: bool) -> None:
        (near, width), (heads2, functions) = inputs[0].shape, inputs[2].shape
        heads, first = heads2 // 2, 0
        size = width // heads // 3
        read = [tensor.contiguous() for tensor in inputs]
        with torch.cuda.device_of(inputs[0]):
            for atoms, most in self.near.shapes:
                tile_other = tile_of(most, most * 2)
                kernel[(atoms, heads)](
                    *read, *results, self.near.atoms, self.near.starts, first, near,
                    heads=heads, size=size, functions=functions, scale=size**-0.5,
                    tile=_TILE, tile_other=tile_other, tile_size=tile_of(size, size * 2),
                    block=triton.next_power_of_2(functions),
                    num_warps=max(4, min(16, tile_other // 8)), num_stages=1, **options,
                )  # fmt: skip
                first += atoms


def _added_up(results: Tensors, inputs: Tensors) -> Tensors:
    of_rows, of_directions, of_coefficients = results
    return of_rows, of_directions.sum((0, 1)), of_coefficients.sum(0)
