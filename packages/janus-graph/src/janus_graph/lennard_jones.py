"""A Lennard-Jones potential with parameters to learn: the smallest whole example of a `Potential`."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from janus_graph.derivatives import Properties, conservative_properties
from janus_graph.geometry import edge_vectors
from janus_graph.graph import AtomGraph


class LennardJones(nn.Module):
    """One well depth and one diameter for all elements, with energies that end smoothly at the cutoff.

    E = ½ Σ_edges 4ε[(σ/r)¹² − (σ/r)⁶] f(r / r_c) with f(x) = 1 − 10x³ + 15x⁴ − 6x⁵ = (1 − x)³(1 + 3x + 6x²), whose
    value, slope and curvature are zero at x = 1. Energy, forces and their first derivatives are therefore continuous
    when edges come and go.

    Attributes:
        epsilon: depth ε of the well before it is smoothed, eV.
        sigma: diameter σ, Å.
        cutoff: r_c, Å.
        near_cutoff: Å. There are no three-body terms; half the cutoff keeps the tables of near edges small.

    Raises:
        ValueError: an epsilon, sigma or cutoff that is not above zero.
    """

    def __init__(self, epsilon: float, sigma: float, cutoff: float) -> None:
        super().__init__()
        for name, value in (("epsilon", epsilon), ("sigma", sigma), ("cutoff", cutoff)):
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be above zero")
        self.epsilon = nn.Parameter(torch.tensor(epsilon, dtype=torch.float64))
        self.sigma = nn.Parameter(torch.tensor(sigma, dtype=torch.float64))
        self.cutoff = float(cutoff)
        self.near_cutoff = self.cutoff / 2

    def forward(self, graph: AtomGraph, properties: Collection[str]) -> Properties:
        """Energy, forces and stress as asked; there are no magnetic moments.

        Raises:
            ValueError: a graph with a shorter cutoff, or properties that `conservative_properties` refuses.
        """
        if graph.cutoff < self.cutoff:
            raise ValueError(
                f"the graph ends at {graph.cutoff} Å and this potential at {self.cutoff} Å; "
                "build the graph with the potential's cutoff"
            )
        return conservative_properties(self._energy, graph, properties)

    def _energy(self, graph: AtomGraph) -> tuple[Float64[Tensor, "structures"], None]:
        distances = edge_vectors(graph).square().sum(dim=1).sqrt().to(self.sigma.dtype)
        sixth = (self.sigma / distances) ** 6
        # Edges beyond this potential's cutoff are possible, in a graph that was made for a longer one.
        x = (distances / self.cutoff).clamp(max=1.0)
        envelope = (1 - x) ** 3 * (1 + 3 * x + 6 * x**2)
        per_edge = 2 * self.epsilon * (sixth**2 - sixth) * envelope
        owner = graph.structure_index.index_select(0, graph.edge_index[0])
        return graph.cells.new_zeros(graph.structures).index_add(0, owner, per_edge.double()), None
