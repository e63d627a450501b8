"""A small conservative potential made of blocks, and structures for it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

CUTOFF = 4.0


@dataclass(frozen=True, eq=False)
class Structure:
    positions: Tensor
    species: Tensor
    centre: Tensor
    neighbour: Tensor
    target: Tensor


@dataclass(frozen=True, eq=False)
class Geometry:
    """What every block is given, to have a dataclass among the arguments."""

    radial: Tensor
    centre: Tensor
    neighbour: Tensor


def structure(atoms: int, seed: int, dtype: torch.dtype = torch.float64) -> Structure:
    generator = torch.Generator().manual_seed(seed)
    positions = 4 * torch.rand(atoms, 3, generator=generator, dtype=torch.float64)
    distance = (positions[:, None] - positions).norm(dim=2)
    near = (distance < CUTOFF) & ~torch.eye(atoms, dtype=torch.bool)
    centre, neighbour = torch.nonzero(near, as_tuple=True)
    target = torch.randn(atoms, 3, generator=generator, dtype=torch.float64)
    species = torch.randint(0, 3, (atoms,), generator=generator)
    return Structure(positions.to(dtype), species, centre, neighbour, target.to(dtype))


class Block(nn.Module):
    def __init__(self, width: int, hidden: int | None = None):
        super().__init__()
        hidden = width if hidden is None else hidden
        self.norm = nn.LayerNorm(width)
        self.centre, self.neighbour = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden)
        self.radial, self.out = nn.Linear(4, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, rows: Tensor, geometry: Geometry) -> Tensor:
        x = self.norm(rows)
        messages = self.centre(x)[geometry.centre] + self.neighbour(x)[geometry.neighbour]
        messages = nn.functional.silu(messages + self.radial(geometry.radial))
        sums = messages.new_zeros(len(rows), messages.shape[1]).index_add(0, geometry.centre, messages)
        return rows + self.scale * self.out(sums)


class Potential(nn.Module):
    """Energies of a structure, one of all atoms' sum, and a row of further outputs."""

    def __init__(self, width: int = 6, hiddens: tuple[int | None, ...] = (None, None, None)):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(3, width))
        self.blocks = nn.ModuleList(Block(width, hidden) for hidden in hiddens)
        self.readout = nn.Linear(width, 2)

    def forward(self, positions: Tensor, given: Structure) -> tuple[Tensor, Tensor]:
        vectors = positions[given.neighbour] - positions[given.centre]
        distance = vectors.square().sum(1).sqrt()
        envelope = (1 - distance / CUTOFF).clamp(min=0) ** 3
        degrees = torch.arange(1, 5, dtype=distance.dtype)
        radial = torch.sin(distance[:, None] * degrees) * envelope[:, None]
        rows, geometry = self.embedding[given.species], Geometry(radial, given.centre, given.neighbour)
        for block in self.blocks:
            rows = block(rows, geometry)
        energies, others = torch.tanh(self.readout(rows)).unbind(1)
        return energies.sum().reshape(1), others


def potential(width: int = 6, hiddens: tuple[int | None, ...] = (None, None, None), seed: int = 0) -> Potential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Potential(width, hiddens).double()


def initialize(module):
    """Fills a block; and what a potential has beside its blocks."""
    parts = [module] if isinstance(module, Block) else [module.readout]
    for part in parts:
        for submodule in part.modules():
            if hasattr(submodule, "reset_parameters"):
                submodule.reset_parameters()
        if isinstance(part, Block):
            part.scale.fill_(0.5)
    if isinstance(module, Potential):
        nn.init.normal_(module.embedding)


def loss_of(given: Structure):
    """Of energies, forces and the other outputs; none of them enters linearly alone."""

    def loss(outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
        energies, others = outputs
        forces = -gradients[0]
        of_forces = ((forces - given.target).square().sum(1) + 1e-3).sqrt().sum()
        return energies.square().sum() + of_forces + 0.3 * (others - 0.1).square().sum()

    return loss


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    if not expected.numel():
        return 0.0
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
