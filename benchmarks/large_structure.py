"""What one large structure needs of each rank that shares it: memory of a training step, by route and strategy.

    python benchmarks/large_structure.py [--atoms 20000] [--preset nano] [--ranks 1 4] [--strategies keep tangent]

A disordered copper-nickel crystal of about so many atoms, energy, forces and stress to learn, float32. For each number
of ranks and each strategy: the highest resident memory of a rank in a step, less what it had before the step (weights,
graph, labels), what the memory plan says of it, and the step's time. What is freed goes back to the system at once, so
that resident is what is alive.
"""

import argparse
import ctypes
import json
import os
import platform
import time
from typing import Any

import numpy as np
import torch
from ase.build import bulk

from janus_comm import Accounting, Communicator, Counted, make_mesh
from janus_comm.testing import run_rank_processes
from janus_graph.ase import structure_from_ase
from janus_train import ShardedStep, Strategy
from janus_train.data.batch import FrameSource
from janus_train.data.frame import Frame
from janus_train.data.statistics import Statistics
from janus_train.plan.memory import bytes_held
from janus_train.plan.workload import workload_of_part
from janus_train.recipes.matris_sharding import matris_sharding
from matris_model import MatRISMoE, preset_config

STRATEGIES = {
    "keep": Strategy(),
    "keep+checkpoint": Strategy(checkpoint=True),
    "tangent": Strategy(route="tangent"),
    "tangent+checkpoint": Strategy(route="tangent", checkpoint=True),
}


def structure(atoms: int) -> Frame:
    side = max(1, round((atoms / 4) ** (1 / 3)))
    crystal = bulk("Cu", cubic=True).repeat((side, side, max(1, round(atoms / 4 / side**2))))
    rng = np.random.default_rng(0)
    crystal.set_atomic_numbers(rng.choice([28, 29], len(crystal)))
    crystal.rattle(0.1, seed=1)
    return Frame(
        structure_from_ase(crystal), task="metals", energy=0.0, forces=rng.normal(size=(len(crystal), 3)),
        stress=np.zeros((3, 3)), origin=f"crystal of {len(crystal)} atoms",
    )  # fmt: skip


def memory(field: str) -> int:
    """Bytes of this process: VmRSS, resident now, or VmHWM, the most since `forget_peak`."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def give_back_what_is_freed() -> None:
    """Allocations of a megabyte and more are maps of their own: others leave holes that only small ones fill."""
    m_mmap_threshold = -3
    ctypes.CDLL("libc.so.6").mallopt(m_mmap_threshold, 1 << 20)


def forget_peak() -> None:
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def on_rank(world: Communicator, source: FrameSource, config: Any, strategy: Strategy) -> dict[str, Any]:
    torch.set_num_threads(1)
    give_back_what_is_freed()
    accounting = Accounting()
    statistics = Statistics(
        np.zeros((1, 119)), np.ones(1), np.zeros(1), np.bincount([28, 29], minlength=119), warnings=()
    )
    with torch.device("meta"):
        model = MatRISMoE(config)
    step = ShardedStep(
        model, matris_sharding(model, statistics, 0), make_mesh(Counted(world, accounting), 1, world.size),
        {"energy": 1.0, "forces": 1.0, "stress": 1.0}, strategy, torch.device("cpu"), accounting,
    )  # fmt: skip
    prepared = step.prepare(source, [0])
    share = prepared.passes[0]
    kinds = bytes_held(
        step.sharding.shape(tuple(step.weights)), workload_of_part(share.part, share.cut), step.plan(share), world.rank,
        route=strategy.route, checkpoint=strategy.checkpoint, kept={},
    )  # fmt: skip
    planned = sum(count for kind, count in kinds.items() if kind != "parameters")
    forget_peak()
    before, began = memory("VmRSS"), time.perf_counter()
    result = step.gradients(prepared)
    return {
        "step_mb": round((memory("VmHWM") - before) / 1e6),
        "planned_mb": round(planned / 1e6),
        "before_mb": round(before / 1e6),
        "seconds": round(time.perf_counter() - began, 1),
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "atoms": prepared.passes[0].batch.graph.atoms,
        "bytes_sent": {
            kind: accounting.total(kind).bytes_sent for kind in dict.fromkeys(k for k, _ in accounting.tallies)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atoms", type=int, default=20000)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--set", nargs="*", default=[], help="fields of the preset, such as cutoff=4.0")
    arguments = parser.parse_args()
    changes = {name: json.loads(value) for name, value in (text.split("=") for text in arguments.set)}
    config = preset_config(arguments.preset, tasks=("metals",), elements=(28, 29), **changes)
    source = FrameSource([structure(arguments.atoms)], config.cutoff, config.near_cutoff)
    rows = []
    for strategy in arguments.strategies:
        for ranks in arguments.ranks:
            found = run_rank_processes(
                ranks, lambda world, way=STRATEGIES[strategy]: on_rank(world, source, config, way), timeout=3600
            )
            rows.append({"strategy": strategy, "ranks": ranks, "of_ranks": found})
            most, planned = (max(each[kind] for each in found) for kind in ("step_mb", "planned_mb"))
            said = f"{most} MB a rank, planned {planned}, {found[0]['seconds']} s"
            print(f"{strategy:20} {ranks} ranks: {said}", flush=True)
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    sizes = {"atoms": int(source.atoms[0]), "edges": int(source.edges[0])}
    print(json.dumps({"preset": arguments.preset, **sizes, **machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
