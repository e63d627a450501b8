"""How close routed experts come to the rate of one dense matrix product, for the rows of real element mixtures.

    python benchmarks/experts.py [PRESET ...] [--rows N] [--few N] [--rounds N] [--threads N] [--device cuda]

A step is what training on forces does: the experts' output, its gradient in the rows with the graph kept, and the
gradient of a sum over both in rows, cotangent, all weights and the routing table. In units of a forward these are 1, 1
and 4. The peak is the first of the two products of an expert as one dense product with both of its gradients, for all
rows at once; it is measured before every step, best of several, because a machine's speed drifts.

`step` is the operations of the products of a step, over the time of everything the experts do in it (weights gathered,
activation, products, gradients of the whole store), over the peak. `products` is the same with the products alone:
matrices at hand, nothing between. Ratios are medians over rounds. Ways beside `grouped`, of which
the same useful operations count:

* `eager`: the activation as plain torch operations; everywhere else it is compiled.
* `loop`: one dense product a group. `padded`: groups padded to the largest, one batched product.
* `gathered`: a matrix of its own for every row. It runs on as few rows as keep these matrices below 256 MB.
* `merged`: linear experts as in UMA, merged into one per group before rows see them: a K-th as many experts, each K
  times as wide, so that active and total parameters are equal. UMA merges per structure; here a group stands for one.
"""

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

import torch
from ase.data import atomic_numbers
from torch import Tensor

from janus_moe import (
    ElementGroups,
    ElementRouter,
    GroupedProduct,
    SwiGLUExperts,
    TensorFunction,
    fused,
    gated_silu,
    group_rows,
    grouped_product,
    loop_product,
)
from janus_train.data.load import bundled_frames
from matris_model import MatRISMoEConfig, preset_config

Experts = Callable[[Tensor, ElementGroups], Tensor]
Step = Callable[[], object]

# One formula unit of each: battery cathodes, perovskites, minerals.
OXIDES = """LiCoO2 LiFePO4 LiMn2O4 LiNiO2 NaFeO2 Li4Ti5O12 BaTiO3 SrTiO3 CaTiO3 LaMnO3 BaZrO3 KVO3 SiO2 Al2O3 TiO2 MgO
ZnO Fe2O3 Cr2O3 CaSiO3 MgAl2O4 Mg2SiO4 KAlSi3O8 NaAlSi3O8"""
GATHERED_BYTES = 2**28


def mixtures() -> dict[str, dict[int, float]]:
    """Shares of elements: atoms of a list of oxides, of the bundled molecules, of the bundled metals."""
    counts: dict[str, Counter[int]] = {"oxides": Counter(), "organic": Counter(), "alloy": Counter()}
    for symbol, number in re.findall(r"([A-Z][a-z]?)(\d*)", OXIDES):
        counts["oxides"][atomic_numbers[symbol]] += int(number or 1)
    for frame in bundled_frames():
        name = {"molecules": "organic", "metals": "alloy"}.get(frame.task)
        if name is not None:
            counts[name].update(frame.structure.atomic_numbers.tolist())
    return {
        name: {z: count / count_all for z, count in sorted(counter.items())}
        for name, counter in counts.items()
        for count_all in [counter.total()]
    }


def groups_of(shares: Mapping[int, float], rows: int, device: str) -> ElementGroups:
    """So many rows, shared out; elements that would have less than half a row have none."""
    counts = {z: round(rows * share) for z, share in shares.items()}
    counts[max(shares, key=lambda z: shares[z])] += rows - sum(counts.values())
    return group_rows(list(counts), list(counts.values()), device)


def padded_product(rows: Tensor, weights: Tensor, groups: ElementGroups) -> Tensor:
    """One batched product of groups that are padded to the largest."""
    most = max(groups.counts)
    places = torch.cat([torch.arange(count) + most * group for group, count in enumerate(groups.counts)])
    places = places.to(rows.device)
    padded = rows.new_zeros(len(groups.counts) * most, rows.shape[1]).index_copy(0, places, rows)
    return (padded.unflatten(0, (-1, most)) @ weights).flatten(0, 1).index_select(0, places)


def gathered_product(rows: Tensor, weights: Tensor, groups: ElementGroups) -> Tensor:
    """A batched product of every row with its own copy of a matrix."""
    owner = torch.arange(len(groups.counts)).repeat_interleave(torch.tensor(groups.counts)).to(rows.device)
    return (rows[:, None] @ weights.index_select(0, owner))[:, 0]


def routed_experts(
    config: MatRISMoEConfig, device: str, product: GroupedProduct, activation: TensorFunction
) -> tuple[Experts, list[Tensor]]:
    """The experts of a layer, and what is learned in them."""
    experts = SwiGLUExperts(config.experts, config.width, config.expert_hidden).to(device)
    router = ElementRouter(config.experts, config.top_k).to(device)
    learned = [*experts.parameters(), *router.parameters()]
    return lambda rows, groups: experts(rows, groups, router, product, activation), learned


def merged_experts(
    config: MatRISMoEConfig, device: str, activation: TensorFunction, groups: ElementGroups
) -> tuple[Experts, list[Tensor]]:
    """Linear experts that are merged per group by weights of all of them."""
    experts, hidden = config.experts // config.top_k, config.top_k * config.expert_hidden
    first = torch.randn(experts, config.width, 2 * hidden, device=device) / config.width**0.5
    second = torch.randn(experts, hidden, config.width, device=device) / hidden**0.5
    logits = torch.randn(len(groups.counts), experts, device=device)
    learned = [first.requires_grad_(), second.requires_grad_(), logits.requires_grad_()]

    def run(rows: Tensor, groups: ElementGroups) -> Tensor:
        gates = torch.softmax(logits, 1)
        merged = [(gates @ store.flatten(1)).unflatten(1, store.shape[1:]) for store in (first, second)]
        return grouped_product(activation(grouped_product(rows, merged[0], groups)), merged[1], groups)

    return run, learned


def double_backward(
    function: Callable[[Tensor], Tensor], width: int, out: int, rows: int, learned: list[Tensor], device: str
) -> Step:
    """A step of a function of rows: its value, its gradient in the rows, and the gradient of both in all there is."""
    x, cotangent = (torch.randn(rows, n, device=device, requires_grad=True) for n in (width, out))
    outer = [torch.randn(rows, n, device=device) for n in (out, width)]

    def run() -> object:
        value = function(x)
        (slope,) = torch.autograd.grad(value, x, cotangent, create_graph=True)
        return torch.autograd.grad([value, slope], [x, cotangent, *learned], outer)

    return run


def products_alone(config: MatRISMoEConfig, groups: ElementGroups, device: str) -> Step:
    """The products of a step, with matrices at hand and nothing in between."""
    hidden, present = config.top_k * config.expert_hidden, len(groups.counts)
    # Stored as the experts' matrices are: the first transposed.
    first = torch.randn(present, 2 * hidden, config.width, device=device).transpose(1, 2).requires_grad_()
    second = torch.randn(present, hidden, config.width, device=device).requires_grad_()

    def step(weights: Tensor) -> Step:
        inputs, outputs = weights.shape[1:]
        product = partial(grouped_product, weights=weights, groups=groups)
        return double_backward(product, inputs, outputs, groups.rows, [weights], device)

    steps = [step(first), step(second)]
    return lambda: [work() for work in steps]


def dense_product(config: MatRISMoEConfig, rows: int, device: str) -> Step:
    """All rows times one matrix of the first product's size, and both gradients."""
    outputs = 2 * config.top_k * config.expert_hidden
    x, weight, gradient = (
        torch.randn(*shape, device=device) for shape in ((rows, config.width), (config.width, outputs), (rows, outputs))
    )
    return lambda: (x @ weight, gradient @ weight.T, x.T @ gradient)


def seconds(work: Step, options: argparse.Namespace) -> float:
    """How long it takes. One thread's own time on the processor is the wall time of a machine that nobody else uses."""
    on_gpu = options.device == "cuda"
    clock = time.process_time if options.threads == 1 and not on_gpu else time.perf_counter
    if on_gpu:
        torch.cuda.synchronize()
    began = clock()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - began


def measure(
    config: MatRISMoEConfig,
    shares: Mapping[int, float],
    rows: int,
    activation: TensorFunction,
    options: argparse.Namespace,
) -> dict[str, object]:
    """Rates over the peak, of every way, for one mixture and number of rows."""
    device, width, hidden = options.device, config.width, config.top_k * config.expert_hidden
    groups = groups_of(shares, rows, device)
    fewest = max(len(groups.counts), min(rows, GATHERED_BYTES // (8 * width * hidden)))
    few = groups_of(shares, fewest, device)
    ways: dict[str, tuple[tuple[Experts, list[Tensor]], ElementGroups]] = {
        "grouped": (routed_experts(config, device, grouped_product, activation), groups),
        "eager": (routed_experts(config, device, grouped_product, gated_silu), groups),
        "loop": (routed_experts(config, device, loop_product, activation), groups),
        "padded": (routed_experts(config, device, padded_product, activation), groups),
        "gathered": (routed_experts(config, device, gathered_product, activation), few),
        "merged": (merged_experts(config, device, activation, groups), groups),
    }
    steps = {
        name: (
            double_backward(lambda x, e=experts, g=plan: e(x, g), width, width, plan.rows, learned, device),
            plan.rows,
        )
        for name, ((experts, learned), plan) in ways.items()
    }
    steps["products"] = products_alone(config, groups, device), rows
    dense = dense_product(config, rows, device)
    for work in (
        dense,
        *(steps[name][0] for name in ("grouped", "eager", "gathered", "merged", "products")),
    ):  # compiles
        work()
    peaks, ratios = [], {name: [] for name in steps}
    for round in range(options.rounds):
        for name, (step, computed) in steps.items():
            if round >= options.other_rounds and name not in ("grouped", "products"):
                continue
            peak = 12 * rows * width * hidden / min(seconds(dense, options) for _ in range(3))
            peaks.append(peak)
            ratios[name].append(36 * computed * width * hidden / seconds(step, options) / peak)
    return {
        "elements": len(groups.counts), "rows": rows, "rows_of_elements": groups.counts, "gathered_rows": few.rows,
        "peak_gflop_per_s": statistics.median(peaks) / 1e9, "gflop": 36 * rows * width * hidden / 1e9,
        "over_peak": {name: statistics.median(values) for name, values in ratios.items() if values},
    }  # fmt: skip


def table(results: Mapping[str, Mapping[str, dict]]) -> str:
    """The ratios for people."""
    names = list(next(iter(next(iter(results.values())).values()))["over_peak"])
    lines = [f"{'':28}" + "".join(f"{name:>10}" for name in names)]
    for preset, cases in results.items():
        for case, result in cases.items():
            ratios = "".join(f"{result['over_peak'][name]:10.3f}" for name in names)
            lines.append(f"{preset:6}{case:9}{result['rows']:>7} rows " + ratios)
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("presets", nargs="*", default=["micro", "mini", "base", "S"])
    arguments.add_argument("--rows", type=int, default=8000, help="rows of a batch, as the edges of a message update")
    arguments.add_argument(
        "--few", type=int, default=200, help="rows of a small batch, as the atoms of a feature update"
    )
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--other-rounds", type=int, default=2, help="of all ways but grouped; padded is slow")
    arguments.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    activation, shares = fused(gated_silu), mixtures()
    results: dict[str, dict[str, dict]] = {}
    for preset in options.presets:
        config = preset_config(preset)
        cases = {name: (shares[name], options.rows) for name in shares} | {"few": (shares["oxides"], options.few)}
        results[preset] = {name: measure(config, *case, activation, options) for name, case in cases.items()}
        print(table({preset: results[preset]}), file=sys.stderr, flush=True)
    print(json.dumps({
        **vars(options), "machine": f"{os.cpu_count()} cores, {platform.machine()}", "torch": torch.__version__,
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE") == "1", "shares": shares, **results,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
