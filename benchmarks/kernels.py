"""What the Triton kernels take beside plain and fused formulas, on a GPU: value, first and second derivative of each.

    python benchmarks/kernels.py [PRESET] [--atoms N] [--near N] [--edges N] [--rounds N]
        [--formulas plain fused triton]

Each part alone, on random numbers of the preset's sizes: `near` (attention among near edges), `around` (attention of
atoms over messages), `product` (rows times the matrix of their element). Milliseconds, medians of CUDA events after a
warm-up that compiles; and the most memory that each holds beyond its inputs.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import torch
from device import FORMULAS
from torch import Tensor

from janus_graph import Structure, build_graph, no_halo
from janus_moe import GroupedProduct, group_rows, grouped_product, loop_product
from matris_model import Formulas, MatRISMoEConfig, preset_config
from matris_model.geometry import Geometry, graph_geometry

Part = tuple[Callable[..., Tensor], list[Tensor]]


def geometry_of(atoms: int, near: int, edges: int, config: MatRISMoEConfig, tables: bool) -> Geometry:
    """Atoms at random in a box in which each has so many neighbours on average within both cutoffs."""
    density = edges / (4 / 3 * np.pi * config.cutoff**3)
    box = (atoms / density) ** (1 / 3)
    config = config.replace(near_cutoff=min(config.cutoff, (near / (4 / 3 * np.pi * density)) ** (1 / 3)))
    positions = np.random.default_rng(0).uniform(0, box, size=(atoms, 3))
    structure = Structure(np.full(atoms, 6), positions, np.eye(3) * box, np.array([True] * 3))
    graph = build_graph([structure], config.cutoff, config.near_cutoff).to("cuda")
    return graph_geometry(graph, config, torch.float32, no_halo, tables)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to("cuda").requires_grad_()


def near_part(formulas: Formulas, geometry: Geometry, config: MatRISMoEConfig) -> Part:
    near, coefficients = len(geometry.near.edges), (config.heads, config.angular_functions)
    inputs = [normal(near, 3 * config.edge_width), normal(*coefficients), normal(*coefficients)]
    return lambda *x: formulas.near_attention(*x, geometry), inputs


def around_part(formulas: Formulas, geometry: Geometry, config: MatRISMoEConfig) -> Part:
    inputs = [
        normal(len(geometry.around.rows), config.heads, config.width),
        normal(len(geometry.centre), config.width),
        normal(config.heads, config.radial_functions),
    ]
    return lambda *x: formulas.edge_attention(*x, geometry), inputs


def product_part(product: GroupedProduct, rows: int, config: MatRISMoEConfig) -> Part:
    """Rows of eight elements, of which each has twice as many as the one before."""
    shares = np.floor(rows * 2.0 ** np.arange(8) / (2**8 - 1)).astype(int)
    groups = group_rows(range(1, 9), shares.tolist(), "cuda")
    inputs = [normal(groups.rows, config.width), normal(8, config.width, 2 * config.top_k * config.expert_hidden)]
    return lambda *x: product(*x, groups), inputs


def derivative(part: Part, order: int) -> Callable[[], object]:
    """Computes the part's value (0), its gradient too (1), or gradients of the gradient's square too (2)."""
    function, inputs = part

    def run() -> object:
        if order == 0:
            with torch.no_grad():
                return function(*inputs)
        slopes = torch.autograd.grad(function(*inputs).square().sum(), inputs, create_graph=order == 2)
        return slopes if order == 1 else torch.autograd.grad(sum(slope.square().sum() for slope in slopes), inputs)

    return run


def measure(run: Callable[[], object], rounds: int) -> dict[str, float]:
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return {"ms": statistics.median(times), "mb": (torch.cuda.max_memory_allocated() - before) / 2**20}


def largest_differences(parts: Sequence[Part]) -> list[float]:
    """How far each part's gradients are from the first one's, over the largest of those."""
    gradients = [derivative(part, 1)() for part in parts]
    expected = gradients[0]
    return [
        max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
        for found in gradients
    ]


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("preset", nargs="?", default="micro")
    arguments.add_argument("--atoms", type=int, default=2000)
    arguments.add_argument("--near", type=int, default=30, help="near edges of an atom")
    arguments.add_argument("--edges", type=int, default=70, help="edges of an atom")
    arguments.add_argument("--rounds", type=int, default=20)
    arguments.add_argument("--formulas", nargs="+", choices=list(FORMULAS), default=["plain", "fused", "triton"])
    options = arguments.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("kernels are timed on a CUDA device, and torch sees none here; run this where there is one")
    from janus_moe.kernels import triton_product  # imports Triton

    config = preset_config(options.preset)
    ways = {name: FORMULAS[name]() for name in options.formulas}
    geometries = {name: geometry_of(options.atoms, options.near, options.edges, config, f.tables)
                  for name, f in ways.items()}  # fmt: skip
    products = {"plain": grouped_product, "loop": loop_product, "triton": triton_product}
    first = next(iter(geometries.values()))
    rows = len(first.centre)
    parts = {
        "near": {name: near_part(ways[name], geometries[name], config) for name in geometries},
        "around": {name: around_part(ways[name], geometries[name], config) for name in geometries},
        "product": {name: product_part(product, rows, config) for name, product in products.items()},
    }
    results = {
        part: {
            name: {f"order_{order}": measure(derivative(way, order), options.rounds) for order in range(3)}
            | {"difference": difference}
            for (name, way), difference in zip(named.items(), largest_differences(list(named.values())), strict=True)
        }
        for part, named in parts.items()
    }
    print(json.dumps({
        **vars(options), "gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
        "near_edges": len(first.near.edges), "all_edges": rows, **results,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
