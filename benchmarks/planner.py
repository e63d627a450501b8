"""How long planning takes, and how even the ranks are: on element mixtures of oxides, molecules and alloys.

    python benchmarks/planner.py [--ranks 8 64] [--atoms 600] [--presets S M L]

Twelve layers whose routers are alike, as they start, so that six are planned for six others; and whose routers have all
parted. Nothing is remembered. Times are the median of repeated plans of one batch after the first, which compiles.
Evenness is the slowest rank's modelled time over the mean, summed over layers of a step, for a rank of 30 TFLOP/s that
sends 200 GB/s; beside it that of experts at fixed homes, for messages alone.
"""

import argparse
import json
import os
import platform
import statistics
import time
from typing import Any

import numpy as np

from janus_moe import initial_selection
from janus_moe.cost import CostModel
from janus_moe.planner import ExpertPlan, plan_experts, rows_move
from janus_moe.testing import MIXTURES, rows_of_batch
from matris_model import PRESETS, MatRISMoEConfig


def batch_of(config: MatRISMoEConfig, mixture: str, ranks: int, atoms: int) -> tuple[np.ndarray, np.ndarray, CostModel]:
    """Rows and experts of all layers, edges and atoms in turn, and what they cost a rank of these rates."""
    rows = np.stack(rows_of_batch(MIXTURES[mixture], ranks, atoms, 0) * config.blocks)
    selection = np.stack([initial_selection(config.experts, config.top_k).numpy()] * len(rows))
    cost = CostModel.from_rates(
        config.width,
        config.expert_hidden,
        flops_per_second=3e13,
        bytes_per_second=2e11,
        seconds_per_exchange=2e-5,
    )
    return rows, selection, cost


def measure(mixture: str, preset: str, ranks: int, atoms: int, repeats: int) -> dict[str, Any]:
    config = PRESETS[preset]
    rows, alike, cost = batch_of(config, mixture, ranks, atoms)
    parted = (alike + 7 * np.arange(len(rows))[:, None, None]) % config.experts

    def timed(selection: np.ndarray) -> tuple[float, ExpertPlan]:
        seconds = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            plan = plan_experts(rows, selection, config.experts, config.expert_hidden, cost)
            seconds.append(time.perf_counter() - began)
        return 1e3 * statistics.median(seconds[1:]), plan

    (milliseconds, _), (apart, plan) = timed(alike), timed(parted)
    times = plan.times(cost)
    fixed = rows_move(rows, parted, config.experts, config.expert_hidden).times(cost)
    return {
        "mixture": mixture,
        "preset": preset,
        "ranks": ranks,
        "milliseconds": milliseconds,
        "milliseconds_of_routers_apart": apart,
        "elements": len(plan.elements),
        "max_over_mean": float(times.max(1).sum() / times.mean(1).sum()),
        "max_over_mean_of_worst_layer": float((times.max(1) / times.mean(1)).max()),
        "max_over_mean_at_fixed_homes": float(fixed[::2].max(1).sum() / fixed[::2].mean(1).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--atoms", type=int, default=600, help="of each rank, about")
    parser.add_argument("--presets", nargs="+", default=["S", "M", "L"], choices=PRESETS)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    results = [
        measure(mixture, preset, ranks, arguments.atoms, arguments.repeats)
        for ranks in arguments.ranks
        for mixture in MIXTURES
        for preset in arguments.presets
    ]
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"setting": vars(arguments), "machine": machine, "results": results}, indent=1))
    print(
        "\n| ranks | mixture | preset | ms to plan | routers apart | slowest over mean | worst layer | at fixed homes |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in results:
        numbers = [f"{row[name]:.1f}" for name in ("milliseconds", "milliseconds_of_routers_apart")]
        numbers += [f"{row[name]:.2f}" for name in ("max_over_mean", "max_over_mean_of_worst_layer")]
        numbers.append(f"{row['max_over_mean_at_fixed_homes']:.1f}")
        mixture = f"{row['mixture']}, {row['elements']} elements"
        print("|", " | ".join([str(row["ranks"]), mixture, row["preset"], *numbers]), "|")


if __name__ == "__main__":
    main()
