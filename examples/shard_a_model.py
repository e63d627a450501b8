"""Shard somebody else's conservative model, by each route; on one process, or with torchrun --nproc-per-node N."""

import torch
from torch import Tensor, nn

from janus_comm import by_double_backward, by_tangent, launch, make_mesh
from janus_comm.sharding import GatherNodes, StockShards, gradient_norm, make_device_mesh


class Interaction(nn.Module):
    """A continuous-filter convolution, as in SchNet."""

    def __init__(self, width: int, radial: int) -> None:
        super().__init__()
        self.filter = nn.Sequential(nn.Linear(radial, width), nn.Softplus(), nn.Linear(width, width))
        self.inward = nn.Linear(width, width, bias=False)
        self.outward = nn.Sequential(nn.Linear(width, width), nn.Softplus(), nn.Linear(width, width))

    def forward(self, rows: Tensor, radial: Tensor, centre: Tensor, neighbour: Tensor) -> Tensor:
        messages = self.inward(rows)[neighbour] * self.filter(radial)
        return rows + self.outward(torch.zeros_like(rows).index_add(0, centre, messages))


class SchNetLike(nn.Module):
    """Knows nothing of Janus."""

    def __init__(self, width: int = 16, radial: int = 8, interactions: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, width)
        self.interactions = nn.ModuleList(Interaction(width, radial) for _ in range(interactions))
        self.readout = nn.Sequential(nn.Linear(width, width), nn.Softplus(), nn.Linear(width, 1))
        self.register_buffer("centres", torch.linspace(0, 5, radial))

    def forward(self, positions: Tensor, species: Tensor, centre: Tensor, neighbour: Tensor) -> Tensor:
        distance = (positions[neighbour] - positions[centre]).norm(dim=1, keepdim=True)
        radial = torch.exp(-((distance - self.centres) ** 2)) * torch.cos(distance * torch.pi / 10) ** 2
        rows = self.embedding(species)
        for interaction in self.interactions:
            rows = interaction(rows, radial, centre, neighbour)
        return self.readout(rows).sum(dim=0)


def structure(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Positions, species, edges, and forces to learn."""
    generator = torch.Generator().manual_seed(seed)
    positions = 4 * torch.rand(8, 3, generator=generator)
    distance = torch.cdist(positions, positions)
    centre, neighbour = torch.nonzero((distance > 0) & (distance < 5), as_tuple=True)
    species, forces = torch.randint(0, 10, (8,), generator=generator), torch.randn(8, 3, generator=generator)
    return positions, species, centre, neighbour, forces


def main() -> None:
    norms = []
    with launch("cpu") as launched:
        mesh = make_mesh(launched.world, replica=1, unit=launched.world.size)
        positions, *graph, target = structure(seed=launched.world.rank)

        def loss(outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
            return outputs[0].square().sum() + (-gradients[0] - target).square().sum()

        # By double backward: gather nodes.
        torch.manual_seed(0)
        model = SchNetLike()
        nodes = GatherNodes(model, model.interactions, mesh, regather=True)
        by_double_backward(lambda x: model(x, *graph), [positions], loss, nodes.phase)
        norms.append(gradient_norm(model.parameters(), mesh.unit_axis))

        # By tangents: stock FSDP2.
        torch.manual_seed(0)
        model = SchNetLike()
        stock = StockShards(model, model.interactions, make_device_mesh(mesh, launched.device), checkpoint=True)
        by_tangent(lambda x: model(x, *graph), [positions], loss, stock.phase)
        norms.append(gradient_norm(model.parameters(), mesh.unit_axis))

        if launched.world.rank == 0:
            print(f"gradient norm by double backward {norms[0]:.6f}, by tangents {norms[1]:.6f}")
    torch.testing.assert_close(*norms, rtol=1e-4, atol=0)


if __name__ == "__main__":
    main()
