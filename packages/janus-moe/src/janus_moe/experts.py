"""SwiGLU experts, and the one-wide-MLP form of those that an element selects.

All rows of one element share one set of experts and one set of weights, so its K experts are one MLP: their first
matrices side by side, their second ones stacked and scaled by the gate weights.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import silu

from janus_moe.fusion import TensorFunction
from janus_moe.groups import ElementGroups
from janus_moe.products import GroupedProduct
from janus_moe.routing import Router
from janus_moe.weights import select_experts, select_scaled_experts


def gated_silu(gate_up: Float[Tensor, "rows hidden2"]) -> Float[Tensor, "rows hidden"]:
    """`silu(gate) * up`, where the first half of the columns is the gate and the second half what it lets through."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))` without biases: the expert that all rows share.

    Args:
        width: features of a row, in and out.
        hidden: hidden width.
        activation: `gated_silu`, or a faster equal.

    Attributes:
        gate_up: both first matrices side by side, [width, 2 hidden].
        down: [hidden, width].
    """

    def __init__(self, width: int, hidden: int, activation: TensorFunction = gated_silu) -> None:
        super().__init__()
        self.activation = activation
        self.gate_up = nn.Parameter(torch.empty(width, 2 * hidden))
        self.down = nn.Parameter(torch.empty(hidden, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights whose products keep the size of what they multiply."""
        nn.init.normal_(self.gate_up, std=1 / math.sqrt(self.gate_up.shape[0]))
        nn.init.normal_(self.down, std=1 / math.sqrt(self.down.shape[0]))

    def forward(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """The expert's output for every row."""
        return self.activation(rows @ self.gate_up) @ self.down


class SwiGLUExperts(nn.Module):
    """A store of experts of equal shape, applied to rows grouped by element.

    Attributes:
        gate_up: first matrices, [experts, 2, hidden, width]: gate, then up.
        down: second matrices, [experts, hidden, width].
    """

    def __init__(self, experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(experts, 2, hidden, width))
        self.down = nn.Parameter(torch.empty(experts, hidden, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights whose products keep the size of what they multiply."""
        nn.init.normal_(self.gate_up, std=1 / math.sqrt(self.gate_up.shape[3]))
        nn.init.normal_(self.down, std=1 / math.sqrt(self.down.shape[1]))

    def forward(
        self,
        rows: Float[Tensor, "rows width"],
        groups: ElementGroups,
        router: Router,
        product: GroupedProduct,
        activation: TensorFunction = gated_silu,
    ) -> Float[Tensor, "rows width"]:
        """`Σ_k gates[g, k] · expert_{selected[g, k]}(row)` for every row of every group g, as the router says.

        Only weights of selected experts are read.
        """
        selected, gates = router(groups.elements)
        gate_up, down = self.wide_weights(selected, gates.to(rows.dtype))
        top_k, hidden = selected.shape[1], self.down.shape[1]
        # The activation sees the experts of a row one below the other, so the store's own order of columns will do.
        inner = product(rows, gate_up, groups).reshape(-1, 2 * hidden)
        return product(activation(inner).reshape(-1, top_k * hidden), down, groups)

    def wide_weights(
        self, selected: Int64[Tensor, "present top_k"], gates: Float[Tensor, "present top_k"]
    ) -> tuple[Float[Tensor, "present width wide2"], Float[Tensor, "present wide width"]]:
        """Matrices of one wide MLP per group: K experts side by side, their outputs scaled by the gates.

        The columns of the first are gate and up of one expert, then of the next.
        """
        (present, top_k), (hidden, width) = selected.shape, self.down.shape[1:]
        flat = selected.flatten()
        gate_up = select_experts(self.gate_up, flat).reshape(present, top_k * 2 * hidden, width)
        down = select_scaled_experts(self.down, flat, gates.flatten()).reshape(present, top_k * hidden, width)
        return gate_up.transpose(1, 2), down
