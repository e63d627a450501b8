"""Small networks of the published model, with its names of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from matris_model.compat.config import MatRISConfig

Part: TypeAlias = tuple[Tensor, Tensor | None]
"""Rows and which of them to take; None takes all as they are."""


class MLP(nn.Module):
    """Linear, SiLU, dropout, and so on to a last linear layer."""

    def __init__(
        self, inputs: int, hidden: Sequence[int], outputs: int, bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, following in zip((inputs, *hidden), hidden, strict=False):
            layers += [nn.Linear(width, following, bias=bias), nn.SiLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear((inputs, *hidden)[-1], outputs, bias=bias))

    def forward(self, rows: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        """One row of outputs for each row."""
        return self.layers(rows)

    @property
    def first(self) -> nn.Linear:
        """The first linear layer."""
        layer = self.layers[0]
        assert isinstance(layer, nn.Linear)
        return layer

    def after_first(self, rows: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows outputs"]:
        """What comes out, given what the first linear layer gives."""
        return self.layers[1:](rows)


class SiLULinear(nn.Module):
    """`silu(W x)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """One row for each row."""
        return silu(self.linear(rows))


class GatedUpdate(nn.Module):
    """`silu(norm MLP_core(x)) ⊙ σ(norm MLP_gate(x))` of parts that are joined feature by feature."""

    def __init__(self, inputs: int, hidden: int, outputs: int, config: MatRISConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate_norm = make_norm(outputs, config.norm_type)
        self.core_norm = make_norm(outputs, config.norm_type)
        self.mlp_core = MLP(inputs, (hidden,), outputs, dropout=dropout)
        self.mlp_gate = MLP(inputs, (hidden,), outputs, dropout=dropout)

    def forward(self, parts: Sequence[Part]) -> Float[Tensor, "rows outputs"]:
        """One row for each row of the joined parts."""
        core, gate = self.mlp_core, self.mlp_gate
        # Both first layers in one product, and rows of both in one gather.
        weight, bias = torch.cat([core.first.weight, gate.first.weight]), torch.cat([core.first.bias, gate.first.bias])
        core_hidden, gate_hidden = joint_linear(parts, weight, bias).chunk(2, dim=1)
        kept = self.core_norm(core.after_first(core_hidden))
        return silu(kept) * torch.sigmoid(self.gate_norm(gate.after_first(gate_hidden)))


class PlainUpdate(nn.Sequential):
    """`norm MLP(x)` of parts that are joined feature by feature."""

    def __init__(self, inputs: int, hidden: int, outputs: int, config: MatRISConfig, dropout: float = 0.0) -> None:
        super().__init__(MLP(inputs, (hidden,), outputs, dropout=dropout), make_norm(outputs, config.norm_type))

    def forward(self, parts: Sequence[Part]) -> Float[Tensor, "rows outputs"]:
        """One row for each row of the joined parts."""
        mlp, norm = self
        assert isinstance(mlp, MLP)
        return norm(mlp.after_first(joint_linear(parts, mlp.first.weight, mlp.first.bias)))


def make_update(inputs: int, hidden: int, outputs: int, config: MatRISConfig, dropout: float = 0.0) -> nn.Module:
    """The network that makes messages, gated or plain."""
    kind = GatedUpdate if config.graph_conv_mlp == "gatemlp" else PlainUpdate
    return kind(inputs, hidden, outputs, config, dropout)


class LayerNorm(nn.LayerNorm):
    """Layer norm out of elementary operations.

    torch's own (2.13) has wrong gradients of its forward derivative, without a word: the tangent route to gradients of
    forces (a forward derivative that is taken back once) would be off by parts of its size.
    """

    def forward(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """Each row with mean zero and variance one, then scaled and shifted."""
        centred = rows - rows.mean(dim=1, keepdim=True)
        inverse = torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + self.eps)
        return centred * inverse * self.weight + self.bias


def make_norm(width: int, norm_type: str) -> nn.Module:
    """A norm over features ("rms", "layer") or over the rows of a batch ("batch")."""
    if norm_type == "rms":
        return nn.RMSNorm(width)  # its epsilon is that of the precision it computes in
    return LayerNorm(width) if norm_type == "layer" else nn.BatchNorm1d(width)


def joint_linear(
    parts: Sequence[Part], weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, "outputs"]
) -> Float[Tensor, "rows outputs"]:
    """`W [part ; part ; ...] + b`, in which each part is multiplied before its rows are gathered.

    An atom has some sixty edges and an edge dozens of angles: this way their products are done once.
    """
    total: Tensor | None = None
    for (rows, taken), columns in zip(parts, weight.split([rows.shape[1] for rows, _ in parts], dim=1), strict=True):
        product = linear(rows, columns, bias if total is None else None)
        if taken is not None:
            product = product.index_select(0, taken)
        total = product if total is None else total + product
    assert total is not None
    return total


def softmax_sums(
    logits: Float[Tensor, "rows width"],
    values: Float[Tensor, "rows width"],
    segment: Int64[Tensor, "rows"],
    segments: int,
) -> Float[Tensor, "segments width"]:
    """`Σ_k softmax_k(logits) ⊙ values_k` over the rows of each segment, channel by channel; zero where there are none.

    Divided once a segment and not once a row, which is the same.
    """
    shape = (segments, logits.shape[1])
    with torch.no_grad():  # any shift gives the same quotient
        taken = segment[:, None].expand_as(logits)
        highest = logits.new_zeros(shape).scatter_reduce(0, taken, logits, "amax", include_self=False)
    weights = torch.exp(logits - highest.index_select(0, segment))
    sums = values.new_zeros(shape).index_add(0, segment, weights * values)
    # The row with the highest logit weighs one, so no total is below that where there are rows at all.
    totals = weights.new_zeros(shape).index_add(0, segment, weights)
    return sums / torch.where(totals > 0, totals, 1.0)
