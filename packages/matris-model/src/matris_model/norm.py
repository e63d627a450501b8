"""Root-mean-square normalisation of features."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from matris_model.formulas import PLAIN, Formulas


class RMSNorm(nn.Module):
    """Rows of unit size, times a learned weight for each feature.

    Args:
        width: features of a row.
        formulas: how it is computed.
    """

    def __init__(self, width: int, formulas: Formulas = PLAIN) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.norm = formulas.norm
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of one."""
        nn.init.ones_(self.weight)

    def forward(self, features: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """The normalised rows."""
        return self.norm(features, self.weight)
