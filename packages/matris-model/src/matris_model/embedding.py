"""What atoms and edges know before the first block."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from janus_graph import AtomGraph
from janus_moe import ELEMENTS
from matris_model.config import MatRISMoEConfig

RADIAL_GAIN = 10.0
"""Over the inverse size of the radial basis at a bond length."""


class StructureEmbedding(nn.Module):
    """Features of a structure as a whole: `MLP[task ; charge and spin ; mean composition]`.

    Charge and spin enter as asinh(q), asinh|q| and asinh(multiplicity − 1): defined for every integer, and a neutral
    singlet is all zeros.
    """

    def __init__(self, config: MatRISMoEConfig) -> None:
        super().__init__()
        width = config.structure_width
        self.task = nn.Parameter(torch.empty(len(config.tasks), width))
        self.charge_and_spin = nn.Linear(3, width, bias=False)
        self.composition = nn.Parameter(torch.empty(ELEMENTS, width)) if config.composition else None
        self.out = nn.Linear(width, width, bias=False)

    def reset_parameters(self) -> None:
        """Weights of unit scale; tasks start close together."""
        nn.init.normal_(self.task, std=0.3)
        nn.init.normal_(self.charge_and_spin.weight, std=0.3)
        if self.composition is not None:
            nn.init.normal_(self.composition)
        nn.init.normal_(self.out.weight, std=self.out.in_features**-0.5)

    def forward(self, graph: AtomGraph) -> Float[Tensor, "structures structure_width"]:
        """One row a structure."""
        dtype = self.task.dtype
        charge, spin = graph.charges.to(dtype), graph.spins.to(dtype)
        labels = torch.asinh(torch.stack([charge, charge.abs(), spin - 1], dim=1))
        rows = self.task.index_select(0, graph.tasks) + self.charge_and_spin(labels)
        if self.composition is not None:
            rows = rows + graph.composition.to(dtype) @ self.composition
        return self.out(silu(rows))


class AtomEmbedding(nn.Module):
    """`silu(W [T_z ; g])`: the element's row joined with its structure's features."""

    def __init__(self, config: MatRISMoEConfig) -> None:
        super().__init__()
        self.element = nn.Parameter(torch.empty(ELEMENTS, config.width))
        self.structure = StructureEmbedding(config)
        self.mix = nn.Linear(config.width + config.structure_width, config.width, bias=False)

    def reset_parameters(self) -> None:
        """Weights of unit scale."""
        nn.init.normal_(self.element)
        self.structure.reset_parameters()
        nn.init.normal_(self.mix.weight, std=self.mix.in_features**-0.5)

    def forward(self, graph: AtomGraph) -> Float[Tensor, "atoms width"]:
        """One row an atom."""
        element = self.element.index_select(0, graph.atomic_numbers)
        structure = self.structure(graph).index_select(0, graph.structure_index)
        return silu(self.mix(torch.cat([element, structure], dim=1)))


class EdgeEmbedding(nn.Module):
    """`W₂ silu(W₁ radial basis)`: zero, with slope and curvature, at the cutoff."""

    def __init__(self, config: MatRISMoEConfig) -> None:
        super().__init__()
        self.radial = nn.Linear(config.radial_functions, config.edge_width, bias=False)
        self.out = nn.Linear(config.edge_width, config.edge_width, bias=False)

    def reset_parameters(self) -> None:
        """Weights that give features of unit scale at bond lengths, where a basis function is about a tenth.

        Left at a tenth, distances are a whisper beside elements and learning starts slowly.
        """
        nn.init.normal_(self.radial.weight, std=RADIAL_GAIN * self.radial.in_features**-0.5)
        nn.init.normal_(self.out.weight, std=2 * self.out.in_features**-0.5)

    def forward(self, radial: Float[Tensor, "edges functions"]) -> Float[Tensor, "edges edge_width"]:
        """One row an edge."""
        return self.out(silu(self.radial(radial)))
