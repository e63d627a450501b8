"""What a training step costs and how far that is from the floor, for one preset and one batch.

    python benchmarks/step.py [PRESET] [--batch crystals|bundled] [--fused] [--checkpoint] [--threads N]

The floor is the step's matrix products at the rate of one large product, measured here and now; all else (elementwise
work, gathers, launches) comes on top. Products are counted by torch on the same step with one product per expert group.
"""

import argparse
import copy
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from janus_moe import MoELayer, loop_product
from janus_train.config import DataConfig
from janus_train.data.batch import Batch, FrameSource, label_counts
from janus_train.data.batching import epoch_batches
from janus_train.data.frame import Frame, with_task_indices
from janus_train.data.load import bundled_frames
from janus_train.loss import loss_sums, weighted_loss
from matris_model import PLAIN, MatRISMoE, call_block, checkpoint_block, fused_formulas, preset_config

WEIGHTS = {"energy": 5.0, "forces": 5.0, "stress": 5.0}


def frames_of(batch: str) -> tuple[list[Frame], tuple[str, ...]]:
    """16 bundled crystals, the same as in `peers.py`; or all of the bundled set."""
    bundled = bundled_frames()
    tasks = tuple(sorted({frame.task for frame in bundled}))
    if batch == "crystals":
        bundled = [frame for frame in bundled if frame.task in ("ionic", "metals") and frame.split == "train"]
        bundled = [bundled[place] for place in np.random.default_rng(0).permutation(len(bundled))[:16]]
    return with_task_indices(bundled, tasks), tasks


def gradients(model: MatRISMoE, batch: Batch, counts: dict[str, int]) -> float:
    """One step's gradients; how long the forward and inner pass took."""
    model.zero_grad()
    began = time.perf_counter()
    found = model(batch.graph, tuple(WEIGHTS))
    middle = time.perf_counter()
    weighted_loss(loss_sums(found, batch), counts, WEIGHTS).backward()
    return middle - began


def flops(model: MatRISMoE, work: Callable[[MatRISMoE], object]) -> int:
    """Operations of the matrix products in a piece of work."""
    counted = copy.deepcopy(model)
    for module in counted.modules():
        if isinstance(module, MoELayer):
            module.product = loop_product  # torch's counter does not know grouped products
    with FlopCounterMode(display=False) as counter:
        work(counted)
    return counter.get_total_flops()


def peak_rate() -> float:
    """Operations a second of one large float32 product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / min(seconds(lambda: a @ b) for _ in range(7))


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(model: MatRISMoE, source: FrameSource, places: list[int], rounds: int) -> dict[str, object]:
    """Medians of a step's parts, rates, and memory."""
    counts = label_counts([source.frames[place] for place in places])
    batch = source.batch(places)
    assert batch is not None
    graph = batch.graph

    def forward(model: MatRISMoE) -> None:
        with torch.no_grad():
            model(graph, ("energy",))

    before = resident_mb()
    gradients(model, batch, counts)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before
    work = {"forward": flops(model, forward), "step": flops(model, lambda m: gradients(m, batch, counts))}
    times: dict[str, list[float]] = {name: [] for name in ("graph", "forward", "energy_and_forces", "step")}
    for _ in range(rounds):
        times["graph"].append(seconds(lambda: source.batch(places)))
        times["forward"].append(seconds(lambda: forward(model)))
        times["step"].append(seconds(lambda: times["energy_and_forces"].append(gradients(model, batch, counts))))
    medians = {name: statistics.median(values) for name, values in times.items()}
    medians["inner"] = medians["energy_and_forces"] - medians["forward"]
    medians["outer"] = medians["step"] - medians["energy_and_forces"]
    step, peak = medians["step"], peak_rate()
    return {
        "structures": graph.structures, "atoms": graph.atoms, "edges": graph.edges, "near_pairs": graph.near.pairs,
        "seconds": medians, "structures_per_s": graph.structures / step, "atoms_per_s": graph.atoms / step,
        "edges_per_s": graph.edges / step, "gflop": {name: count / 1e9 for name, count in work.items()},
        "step_over_forward_flop": work["step"] / work["forward"], "gflop_per_s": work["step"] / step / 1e9,
        "peak_gflop_per_s": peak / 1e9, "floor_seconds": work["step"] / peak,
        "floor_over_step": work["step"] / peak / step, "memory_mb": memory,
        "memory_kb_a_near_pair": 2**10 * memory / max(graph.near.pairs, 1),
    }  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("preset", nargs="?", default="nano")
    arguments.add_argument("--batch", choices=("crystals", "bundled"), default="crystals")
    arguments.add_argument("--fused", action="store_true")
    arguments.add_argument("--checkpoint", action="store_true")
    arguments.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments.add_argument("--rounds", type=int, default=7)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    frames, tasks = frames_of(options.batch)
    formulas = fused_formulas() if options.fused else PLAIN
    run_block = checkpoint_block if options.checkpoint else call_block
    model = MatRISMoE(preset_config(options.preset, tasks=tasks), 0, formulas, run_block).float()
    source = FrameSource(frames, model.config.cutoff, model.config.near_cutoff)
    places = list(range(len(frames)))
    if options.batch == "bundled":
        places = epoch_batches(source.edges, DataConfig().batch_edges, seed=0, epoch=0)[0].tolist()
    print(json.dumps({
        **vars(options), "machine": f"{os.cpu_count()} cores, {platform.machine()}", "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **measure(model, source, places, options.rounds),
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
