"""What atoms, bonds and angles know before the first block, with the published names of parameters."""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor, nn

from matris_model.compat.basis import BesselExpansion, FourierExpansion, SphericalHarmonicExpansion
from matris_model.compat.config import HIGHEST_ELEMENT, MatRISConfig
from matris_model.compat.layers import LayerNorm, SiLULinear


class ReferenceEnergy(nn.Module):
    """Energy per atom of a composition: fractions times the energies of elements, which are never trained.

    In single precision, as published. So energies per atom carry its rounding, up to 1e-6 eV; each structure's own is
    always the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(HIGHEST_ELEMENT, 1, bias=False)
        self.fc.weight.requires_grad_(False)
        nn.init.zeros_(self.fc.weight)

    def forward(self, composition: Float[Tensor, "structures elements"]) -> Float[Tensor, "structures"]:
        """Energy per atom of each structure, eV, in float64.

        Args:
            composition: fraction of each element; the column is the atomic number.
        """
        fractions = composition[:, 1 : HIGHEST_ELEMENT + 1].float()
        # Products add up in double precision and are rounded after, so the order of elements changes nothing.
        return (fractions * self.fc.weight.float()).double().sum(dim=1).float().double()


class AtomEmbedding(nn.Module):
    """`silu(W T_z)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(HIGHEST_ELEMENT, width)
        self.atom_swish_layer = SiLULinear(width)

    def forward(self, atomic_numbers: Int64[Tensor, "atoms"]) -> Float[Tensor, "atoms width"]:
        """One row an atom."""
        return self.atom_swish_layer(self.embedding(atomic_numbers - 1))


class EdgeEmbedding(nn.Module):
    """`silu(W₃ norm(W₂ W₁ b(r)))` of the Bessel functions b of a bond's length.

    The layer norm makes features of unit size of whatever is small, so they do not fade at the cutoff.
    """

    def __init__(self, config: MatRISConfig) -> None:
        super().__init__()
        width = config.edge_feat_dim
        settings = (config.envelope_exponent, config.learnable_basis)
        self.pairwise_rbf_expansion = BesselExpansion(config.num_radial, config.pairwise_cutoff, *settings)
        self.threebody_rbf_expansion = BesselExpansion(config.num_radial, config.three_body_cutoff, *settings)
        self.edge_linear1 = nn.Linear(config.num_radial, width, bias=False)
        self.edge_linear2 = nn.Linear(width, width, bias=False)
        self.edge_init_norm = LayerNorm(width)
        self.swish_layer = SiLULinear(width)

    def forward(self, radial: Float[Tensor, "bonds functions"]) -> Float[Tensor, "bonds width"]:
        """One row a bond."""
        return self.swish_layer(self.edge_init_norm(self.edge_linear2(self.edge_linear1(radial))))


class ThreeBodyEmbedding(nn.Module):
    """`silu(W_b W_a basis(θ))`."""

    def __init__(self, config: MatRISConfig) -> None:
        super().__init__()
        width = config.three_body_feat_dim
        self.expansion: nn.Module
        if config.three_body_expansion == "fourier":
            self.expansion, functions = FourierExpansion(config.num_angular, config.learnable_basis), config.num_angular
        else:
            self.expansion = SphericalHarmonicExpansion(config.max_l, config.max_n, config.pairwise_cutoff)
            functions = config.max_l * config.max_n
        self.angle_embedding = nn.Linear(functions, width, bias=False)
        self.swish_layer = SiLULinear(width)

    def forward(self, cosines: Float[Tensor, "angles"]) -> Float[Tensor, "angles width"]:
        """One row an angle."""
        return self.swish_layer(self.angle_embedding(self.expansion(cosines)))
