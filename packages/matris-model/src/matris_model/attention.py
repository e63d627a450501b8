"""The two attentions of a block: among the near edges of an atom, and from its edges to the atom.

Every softmax has a sink, a "+1" in the denominator, and every weight carries the envelope of its edge. A weight goes to
zero when its edge leaves, also when it is the only one, so nothing jumps at a cutoff.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from matris_model.geometry import Geometry, NearBlock, padded, take_rows

LARGEST_LOGIT = 10.0
"""An edge counts as long as its envelope is above e^−logit. Without a bound that can be a hair from the cutoff, where
energy and forces would be smooth in name only; with it, it is a sixtieth of the cutoff.
"""


class ThreeBodyAttention(nn.Module):
    """Self-attention among the near edges p, q of one atom, with the angle between them in logits and values.

    s_pq = Q e_p · K e_q / √d + Σ_l b_l P_l(cos θ_pq),  α_pq = φ_q e^{s_pq} / (1 + Σ_{q'≠p} φ_{q'} e^{s_pq'}),
    Δe_p = φ_p O Σ_q α_pq Σ_l c_l P_l(cos θ_pq) V e_q, for each head.

    Args:
        width: features of an edge.
        heads: attention heads.
        angular_functions: Legendre polynomials in the angular bias b and filter c.
    """

    def __init__(self, width: int, heads: int, angular_functions: int) -> None:
        super().__init__()
        self.heads = heads
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
        rows = padded(self.query_key_value(edges))
        changes = [self._attend(take_rows(rows, block.table), block) for block in geometry.near_blocks]
        if not changes:
            return edges * 0.0
        return torch.cat([change.flatten(0, 1) for change in changes]).index_select(0, geometry.near_slots)

    def _attend(self, rows: Float[Tensor, "atoms n width3"], block: NearBlock) -> Float[Tensor, "atoms n width"]:
        atoms, n, _ = rows.shape
        query, key, value = rows.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        angular = torch.matmul(torch.cat([self.bias, self.filter]), block.angular)
        bias, angular_filter = angular.unflatten(2, (n, n)).split(self.heads, dim=1)
        scores = torch.matmul(query / math.sqrt(query.shape[-1]), key.transpose(2, 3)) + bias
        # Any shift cancels between numerator and denominator, sink included; this one keeps exp in range.
        shift = scores.detach().amax(dim=3, keepdim=True).clamp(min=0)
        weights = block.weight[:, None] * torch.exp(scores - shift)
        attention = weights / (torch.exp(-shift) + weights.sum(dim=3, keepdim=True))
        gathered = torch.matmul(attention * angular_filter, value)
        return self.out(gathered.transpose(1, 2).reshape(atoms, n, -1)) * block.envelope[:, :, None]


class AtomAttention(nn.Module):
    """Attention of an atom over its messages m_k: `h_i + O Σ_k α_k V m_k`, and what the messages leave on the edges.

    Logits are Q h_i · K m_k / √d, squashed between ±`LARGEST_LOGIT` as the size of messages is not bounded, plus a
    linear function of the radial basis, which is zero at the cutoff; weights are φ_k e^s / (1 + Σ φ e^s).

    Args:
        width: features of an atom and of a message.
        edge_width: features of an edge and of queries and keys.
        heads: attention heads.
        radial_functions: size of the radial basis.
    """

    def __init__(self, width: int, edge_width: int, heads: int, radial_functions: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, edge_width, bias=False)
        self.key = nn.Linear(width, edge_width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.radial = nn.Linear(radial_functions, heads, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, atoms: Float[Tensor, "atoms width"], messages: Float[Tensor, "edges width"], geometry: Geometry
    ) -> Float[Tensor, "atoms width"]:
        """The change of every atom."""
        centre = geometry.centre
        query = self.query(atoms).index_select(0, centre).unflatten(1, (self.heads, -1))
        key = self.key(messages).unflatten(1, (self.heads, -1))
        scores = (query * key).sum(dim=2) / math.sqrt(key.shape[2])
        scores = LARGEST_LOGIT * torch.tanh(scores / LARGEST_LOGIT) + self.radial(geometry.radial)
        shift = scores.new_zeros(atoms.shape[0], self.heads)
        shift = shift.scatter_reduce(0, centre[:, None].expand_as(scores), scores.detach(), "amax")
        weights = geometry.envelope[:, None] * torch.exp(scores - shift.index_select(0, centre))
        total = torch.exp(-shift).index_add(0, centre, weights)
        value = self.value(messages).unflatten(1, (self.heads, -1)) * weights[:, :, None]
        gathered = torch.zeros_like(atoms).index_add(0, centre, value.flatten(1))
        return self.out((gathered.unflatten(1, (self.heads, -1)) / total[:, :, None]).flatten(1))
