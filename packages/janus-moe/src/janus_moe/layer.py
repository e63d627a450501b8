"""The Mixture-of-Experts layer: a shared expert for every row and routed ones for its element."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from janus_moe.experts import SwiGLU, SwiGLUExperts, gated_silu
from janus_moe.fusion import TensorFunction
from janus_moe.groups import ElementGroups
from janus_moe.products import GroupedProduct, grouped_product
from janus_moe.routing import ElementRouter


class MoELayer(nn.Module):
    """`MoE(z; x) = Shared(x) + Σ_{n ∈ top-K(z)} g_{z,n} Expert_n(x)` for rows sorted by element z.

    No capacity, no dropped rows, no permutation, no auxiliary loss.

    Args:
        width: features of a row, in and out.
        experts: number of routed experts.
        top_k: routed experts of each element.
        hidden: hidden width of a routed expert.
        shared_hidden: hidden width of the shared expert.
        product: how rows are multiplied by the matrix of their group.
        activation: `gated_silu`, or a faster equal (`fused(gated_silu)`).
    """

    def __init__(
        self,
        width: int,
        experts: int,
        top_k: int,
        hidden: int,
        shared_hidden: int,
        product: GroupedProduct = grouped_product,
        activation: TensorFunction = gated_silu,
    ) -> None:
        super().__init__()
        self.shared = SwiGLU(width, shared_hidden, activation)
        self.experts = SwiGLUExperts(experts, width, hidden)
        self.router = ElementRouter(experts, top_k)
        self.product = product
        self.activation = activation

    def forward(self, rows: Float[Tensor, "rows width"], groups: ElementGroups) -> Float[Tensor, "rows width"]:
        """The layer's output for every row.

        Raises:
            ValueError: the plan is for another number of rows.
        """
        if groups.rows != rows.shape[0]:
            raise ValueError(f"{rows.shape[0]} rows but groups for {groups.rows}; group the rows of this batch")
        return self.shared(rows) + self.experts(rows, groups, self.router, self.product, self.activation)
