"""What training on forces costs by each route, under each kind of sharding: time, operations, memory, bytes sent.

    python benchmarks/second_order.py [--ranks 2] [--blocks 8] [--width 192] [--atoms 160] [--steps 5] [--plot FILE]

Every rank has a structure of its own, one thread, and talks through gloo. Rows are measured in turn, several rounds,
and the median is reported; what fails is a row too, with what it fails of. Operations are those of matrix products
over those of a plain forward pass; peak bytes are all that torch allocated at a time during a step, over what was
there before it; sent bytes are those of collectives on parameters and their gradients.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # ranks are forked

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from janus_comm import Communicator, Mesh, by_double_backward, by_tangent, carry_tangents, make_mesh
from janus_comm.sharding import GatherNodes, StockShards, make_device_mesh
from janus_comm.testing import run_rank_processes
from janus_comm.testing.measure import ProductFlops, peak_bytes

CUTOFF, RADIAL = 6.0, 16
Step = Callable[[], object]


class Block(nn.Module):
    """A message-passing block: norm, two projections before the gather, a radial filter, a sum, a projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.centre, self.neighbour = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.radial, self.mix = nn.Linear(RADIAL, width, bias=False), nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, rows: Tensor, radial: Tensor, centre: Tensor, neighbour: Tensor) -> Tensor:
        normed = self.norm(rows)
        messages = self.centre(normed)[centre] + self.neighbour(normed)[neighbour] + self.radial(radial)
        messages = nn.functional.silu(self.mix(nn.functional.silu(messages)))
        return rows + self.out(torch.zeros_like(rows).index_add(0, centre, messages)) / 30


class Potential(nn.Module):
    """The energy of a structure."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.readout = nn.Linear(width, 1)

    def forward(self, positions: Tensor, species: Tensor, centre: Tensor, neighbour: Tensor) -> Tensor:
        distance = (positions[neighbour] - positions[centre]).square().sum(1).sqrt()
        scaled = (distance / CUTOFF).clamp(max=1)
        envelope = 1 - 10 * scaled**3 + 15 * scaled**4 - 6 * scaled**5
        degrees = torch.arange(1, RADIAL + 1, dtype=distance.dtype) * torch.pi
        radial = torch.sin(degrees * scaled[:, None]) / distance[:, None] * envelope[:, None]
        rows = self.embedding(species)
        for block in self.blocks:
            rows = block(rows, radial, centre, neighbour)
        return self.readout(rows).sum().reshape(1) * 1.0


@dataclass(frozen=True, eq=False)
class Example:
    """A structure with forces to learn."""

    positions: Tensor
    graph: tuple[Tensor, Tensor, Tensor]
    forces: Tensor

    def loss(self, outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
        of_forces = (-gradients[0] - self.forces).square().sum(1).add(1e-6).sqrt().mean()
        return (outputs[0] / len(self.forces)).square().sum() + of_forces


def example(atoms: int, seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    positions = (atoms / 0.08) ** (1 / 3) * torch.rand(atoms, 3, generator=generator)
    distance = torch.cdist(positions, positions)
    centre, neighbour = torch.nonzero((distance < CUTOFF) & (distance > 0.3), as_tuple=True)
    species = torch.randint(0, 10, (atoms,), generator=generator)
    return Example(positions, (species, centre, neighbour), torch.randn(atoms, 3, generator=generator))


class Counter(ProductFlops):
    """Operations of products, and bytes that c10d's collectives send."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks, self.sent = ranks, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func.namespace == "c10d":
            self.sent += _bytes_sent(func._overloadpacket.__name__, args, self.ranks)
        return result


def _bytes_sent(name: str, args: Any, ranks: int) -> int:
    def size(value: Any) -> int:
        if isinstance(value, Tensor):
            return value.numel() * value.element_size()
        return sum(map(size, value)) if isinstance(value, (list, tuple)) else 0

    if name == "_allgather_base_":
        return size(args[1]) * (ranks - 1)
    if name == "allgather_":
        return size(args[1]) * (ranks - 1)
    if name in ("_reduce_scatter_base_", "alltoall_base_"):
        return size(args[1]) * (ranks - 1) // ranks
    if name == "allreduce_":
        return 2 * size(args[0]) * (ranks - 1) // ranks
    return 0


@dataclass(frozen=True)
class Setting:
    """What every way to train is given on a rank."""

    world: Communicator
    mesh: Mesh
    devices: DeviceMesh
    model: Potential
    example: Example

    @property
    def inputs(self) -> list[Tensor]:
        return [self.example.positions]

    def energies(self, positions: Tensor) -> Tensor:
        return self.model(positions, *self.example.graph)


def _add_up(setting: Setting) -> None:
    parameters = [p for p in setting.model.parameters() if p.grad is not None]
    total = setting.world.sum(torch.cat([p.grad.flatten() for p in parameters]))
    for parameter, part in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(part.view_as(parameter))


def replicated(route: Any, checkpoint: bool) -> Callable[[Setting], Step]:
    def prepare(setting: Setting) -> Step:
        for block in setting.model.blocks:
            carry_tangents(block, checkpoint)

        def step() -> None:
            route(setting.energies, setting.inputs, setting.example.loss)
            _add_up(setting)

        return step

    return prepare


def gathered(regather: bool, checkpoint: bool) -> Callable[[Setting], Step]:
    def prepare(setting: Setting) -> Step:
        model = setting.model
        nodes = GatherNodes(model, model.blocks, setting.mesh, regather=regather, checkpoint=checkpoint)
        return lambda: by_double_backward(setting.energies, setting.inputs, setting.example.loss, nodes.phase)

    return prepare


def stock(checkpoint: bool) -> Callable[[Setting], Step]:
    def prepare(setting: Setting) -> Step:
        model = setting.model
        shards = StockShards(model, model.blocks, setting.devices, checkpoint=checkpoint)
        return lambda: by_tangent(setting.energies, setting.inputs, setting.example.loss, shards.phase)

    return prepare


def stock_by_double_backward(reshard: bool) -> Callable[[Setting], Step]:
    def prepare(setting: Setting) -> Step:
        for block in setting.model.blocks:
            fully_shard(block, mesh=setting.devices, reshard_after_forward=reshard)
        fully_shard(setting.model, mesh=setting.devices, reshard_after_forward=reshard)
        if not reshard:
            setting.model.set_reshard_after_backward(False)
        return lambda: by_double_backward(setting.energies, setting.inputs, setting.example.loss)

    return prepare


def compiled_inner(setting: Setting) -> Step:
    """Energy and its gradient in one compiled function, then an ordinary backward pass."""
    graph, model, example = setting.example.graph, setting.model, setting.example
    names = [name for name, _ in model.named_parameters()]

    def energy_and_gradient(positions: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        def energy(x: Tensor) -> tuple[Tensor, Tensor]:
            value = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (x, *graph))
            return value.sum(), value

        gradient, value = torch.func.grad(energy, has_aux=True)(positions)
        return value, gradient

    compiled = torch.compile(energy_and_gradient)

    def step() -> None:
        value, gradient = compiled(example.positions, *model.parameters())
        example.loss((value,), (gradient,)).backward()
        _add_up(setting)

    return step


def compiled_tangent(setting: Setting) -> Step:
    """Each block's forward derivative compiled."""
    for block in setting.model.blocks:
        block.forward = torch.compile(block.forward)
        carry_tangents(block)

    def step() -> None:
        by_tangent(setting.energies, setting.inputs, setting.example.loss)
        _add_up(setting)

    return step


WAYS: dict[str, Callable[[Setting], Step]] = {
    "backward, replicated": replicated(by_double_backward, False),
    "backward, replicated, checkpoint": replicated(by_double_backward, True),
    "backward, keep": gathered(False, False),
    "backward, keep, checkpoint": gathered(False, True),
    "backward, regather": gathered(True, False),
    "backward, regather, checkpoint": gathered(True, True),
    "tangent, replicated": replicated(by_tangent, False),
    "tangent, replicated, checkpoint": replicated(by_tangent, True),
    "tangent, FSDP2": stock(False),
    "tangent, FSDP2, checkpoint": stock(True),
    "backward, FSDP2": stock_by_double_backward(True),
    "backward, FSDP2 never resharded": stock_by_double_backward(False),
    "backward, replicated, compiled": compiled_inner,
    "tangent, replicated, compiled": compiled_tangent,
}


def measure(world: Communicator, arguments: argparse.Namespace, way: str) -> dict[str, Any]:
    torch.manual_seed(0)
    mesh = make_mesh(world, 1, world.size)
    devices = make_device_mesh(mesh, torch.device("cpu"))
    model = Potential(arguments.width, arguments.blocks)
    given = example(arguments.atoms, world.rank)
    with Counter(1) as forward, torch.no_grad():
        model(given.positions, *given.graph)
    expected = _expected(copy.deepcopy(model), arguments, world.size)
    setting = Setting(world, mesh, devices, model, given)
    step = WAYS[way](setting)

    def fresh() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        step()

    fresh()
    wrong = _difference(model, expected, world.rank, world.size)
    counter = Counter(world.size) if "compiled" not in way else nullcontext()
    with counter as counted:
        fresh()
    peak = peak_bytes(fresh)
    times = []
    for _ in range(arguments.steps):
        world.barrier()
        began = time.perf_counter()
        fresh()
        world.barrier()
        times.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(times),
        "operations": None if counted is None else counted.flops / forward.flops,
        "peak_mb": peak / 2**20,
        "sent_mb": None if counted is None else counted.sent / 2**20,
        "difference": wrong,
        "parameters_mb": sum(value.numel() * 4 for value in expected.values()) / 2**20,
    }


def _expected(model: Potential, arguments: argparse.Namespace, ranks: int) -> dict[str, Tensor]:
    for rank in range(ranks):
        given = example(arguments.atoms, rank)
        by_double_backward(lambda x, g=given: model(x, *g.graph), [given.positions], given.loss)
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _difference(model: nn.Module, expected: dict[str, Tensor], rank: int, ranks: int) -> float:
    """Worst relative difference of a gradient; FSDP2 by double backward takes the mean, which is allowed for."""
    worst = 0.0
    for name, parameter in model.named_parameters():
        whole, found = expected[name], parameter.grad
        if found is None:
            raise RuntimeError(f"no gradient in {name}")
        found = found.to_local() if hasattr(found, "to_local") else found
        parts = whole.chunk(ranks)
        wanted = whole if found.shape == whole.shape else parts[rank] if rank < len(parts) else whole[:0]
        if wanted.numel():
            sums = float((found - wanted).abs().max())
            means = float((found * ranks - wanted).abs().max())
            worst = max(worst, min(sums, means) / float(whole.abs().max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("ranks", 2), ("blocks", 8), ("width", 192), ("atoms", 160), ("steps", 5), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in arguments.ways}
    failures: dict[str, str] = {}
    for turn in range(arguments.rounds):
        for way in arguments.ways:
            if way in failures or (turn and "compiled" in way):
                continue
            try:
                found = run_rank_processes(arguments.ranks, lambda world, w=way: measure(world, arguments, w), 300.0)
            except Exception as error:  # noqa: BLE001  what fails is a result here
                failures[way] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
            else:
                rows[way].append(found[0])
    table = {
        way: {key: statistics.median(run[key] for run in runs) if runs[0][key] is not None else None for key in runs[0]}
        for way, runs in rows.items()
        if runs
    }
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    print(json.dumps({"setting": vars(arguments) | {"plot": None}, "machine": machine, "ways": table,
                      "failures": failures}, indent=1))  # fmt: skip
    base = table.get("backward, replicated", {}).get("seconds")
    for way, row in table.items():
        relative = f"{row['seconds'] / base:5.2f}" if base else "  –  "
        operations = "  –  " if row["operations"] is None else f"{row['operations']:5.2f}"
        sent = "   –  " if row["sent_mb"] is None else f"{row['sent_mb']:6.1f}"
        print(f"| {way:34} | {row['seconds']:.3f} | {relative} | {operations} | {row['peak_mb']:6.1f} | {sent} | "
              f"{row['difference']:.1e} |")  # fmt: skip
    for way, told in failures.items():
        print(f"| {way:34} | fails: {told} |")
    if arguments.plot:
        plot(table, arguments.plot)


def plot(table: dict[str, dict[str, Any]], file: Path) -> None:
    """Time against memory, one point a way."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for way, row in table.items():
        colour = "tab:blue" if way.startswith("backward") else "tab:orange"
        axes.plot(row["peak_mb"], row["seconds"], "o" if "checkpoint" in way else "s", color=colour)
        axes.annotate(way, (row["peak_mb"], row["seconds"]), fontsize=7, xytext=(4, 3), textcoords="offset points")
    axes.set_xlabel("most that a step holds at a time, MB")
    axes.set_ylabel("seconds a step")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    main()
