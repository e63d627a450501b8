"""The two attentions of a block: among the near edges of an atom, and from its edges to the atom.

Every softmax has a sink, a "+1" in the denominator, and every weight carries the envelope of its edge. A weight goes to
zero when its edge leaves, also when it is the only one, so nothing jumps at a cutoff.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from matris_model.formulas import PLAIN, Formulas
from matris_model.geometry import Geometry


class ThreeBodyAttention(nn.Module):
    """Self-attention among the near edges p, q of one atom, with the angle between them in logits and values.

    s_pq = Q e_p · K e_q / √d + Σ_l b_l P_l(cos θ_pq),  α_pq = φ_q e^{s_pq} / (1 + Σ_{q'≠p} φ_{q'} e^{s_pq'}),
    Δe_p = φ_p O Σ_q α_pq Σ_l c_l P_l(cos θ_pq) V e_q, for each head.

    Args:
        width: features of an edge.
        heads: attention heads.
        angular_functions: Legendre polynomials in the angular bias b and filter c.
        formulas: how the attention is computed.
    """

    def __init__(self, width: int, heads: int, angular_functions: int, formulas: Formulas = PLAIN) -> None:
        super().__init__()
        self.attend = formulas.near_attention
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(heads, angular_functions))
        self.filter = nn.Parameter(torch.empty(heads, angular_functions))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """No angular preference in the logits; filters that start as random low-degree functions of the angle."""
        nn.init.zeros_(self.bias)
        degrees = torch.arange(self.filter.shape[1], device=self.filter.device)
        with torch.no_grad():
            nn.init.normal_(self.filter).div_(1 + degrees)

    def forward(self, edges: Float[Tensor, "near width"], geometry: Geometry) -> Float[Tensor, "near width"]:
        """The change of every near edge."""
        if not geometry.near.shapes:
            return edges * 0.0
        return self.out(self.attend(self.query_key_value(edges), self.bias, self.filter, geometry))


class AtomAttention(nn.Module):
    """Attention of an atom over its messages m_k: `h_i + O Σ_k α_k V m_k`, and what the messages leave on the edges.

    Logits are Q h_i · K m_k / √d, bounded, plus a linear function of the radial basis; weights are
    φ_k e^s / (1 + Σ φ e^s).

    Args:
        width: features of an atom and of a message.
        edge_width: features of an edge and of queries and keys.
        heads: attention heads.
        radial_functions: size of the radial basis.
        formulas: how the attention is computed.
    """

    def __init__(
        self, width: int, edge_width: int, heads: int, radial_functions: int, formulas: Formulas = PLAIN
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attend = formulas.edge_attention
        self.query = nn.Linear(width, edge_width, bias=False)
        self.key = nn.Linear(width, edge_width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.radial = nn.Linear(radial_functions, heads, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, atoms: Float[Tensor, "atoms width"], messages: Float[Tensor, "edges width"], geometry: Geometry
    ) -> Float[Tensor, "atoms width"]:
        """The change of every atom.

        Keys and values are linear in the messages, so their matrices move to the atoms, of which there are some sixty
        times fewer: Q h · K m = (Kᵀ Q h) · m, and Σ α V m = V Σ α m. Per edge and head only two products with a message
        are left.
        """
        query = self.query(atoms).unflatten(1, (self.heads, -1))
        query = torch.einsum("ahk,hkd->ahd", query, self.key.weight.unflatten(0, (self.heads, -1)))
        query = query / math.sqrt(self.query.out_features // self.heads)
        gathered = self.attend(query, messages, self.radial.weight, geometry)
        value = torch.einsum("ahd,hvd->ahv", gathered, self.value.weight.unflatten(0, (self.heads, -1)))
        return self.out(value.flatten(1))
