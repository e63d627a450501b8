"""How much of the communication of a sharded step hides behind its computation; and a timeline of one step.

    python benchmarks/overlap.py [--replica 1] [--unit 2] [--blocks 8] [--width 256] [--atoms 60] [--plot FILE]

Gather nodes, weights gathered again, one optimiser a bucket, gloo, one thread a rank. A collective is *under way* from
its start to the moment somebody waits for it, while the rank computes, and *waited for* from there to its end.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from second_order import Potential, example
from torch import Tensor

from janus_comm import Communicator, Mesh, by_double_backward, make_mesh
from janus_comm.sharding import BucketwiseUpdate, GatherNodes
from janus_comm.testing import run_rank_processes

Span = tuple[str, float, float, float]
"""What, when it started, when somebody waited for it, when it was there."""


class Timed:
    """A communicator that does what another does, and writes down when."""

    def __init__(self, communicator: Communicator, spans: list[Span], axis: str) -> None:
        self._inner, self._spans, self._axis = communicator, spans, axis
        self.rank, self.size = communicator.rank, communicator.size

    def _started(self, what: str, wait: Callable[[], Tensor], began: float) -> Callable[[], Tensor]:
        def waited() -> Tensor:
            asked = time.perf_counter()
            result = wait()
            self._spans.append((f"{what}, {self._axis}", began, asked, time.perf_counter()))
            return result

        return waited

    def start_gather_rows(self, rows: Tensor, counts: Any) -> Callable[[], Tensor]:
        began = time.perf_counter()
        return self._started("gather", self._inner.start_gather_rows(rows, counts), began)

    def start_reduce_scatter_rows(self, rows: Tensor, counts: Any) -> Callable[[], Tensor]:
        began = time.perf_counter()
        return self._started("reduce-scatter", self._inner.start_reduce_scatter_rows(rows, counts), began)

    def sum(self, tensor: Tensor) -> Tensor:
        began = time.perf_counter()
        return self._started("sum", lambda: self._inner.sum(tensor), began)()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def measure(world: Communicator, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    spans: list[Span] = []
    phases: list[Span] = []
    plain = make_mesh(world, arguments.replica, arguments.unit)
    axes = (Timed(plain.replica_axis, spans, "replicas"), Timed(plain.unit_axis, spans, "unit"))
    mesh = Mesh(plain.replica, plain.unit, world, *axes)
    model, given = Potential(arguments.width, arguments.blocks), example(arguments.atoms, world.rank)
    nodes = GatherNodes(model, model.blocks, mesh, regather=True)
    update = BucketwiseUpdate(nodes, lambda shards: torch.optim.AdamW(shards, lr=1e-4), 1.0)

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        began = time.perf_counter()
        with nodes.phase(name):
            yield
        phases.append((name, began, began, time.perf_counter()))

    def step() -> float:
        spans.clear()
        phases.clear()
        began = time.perf_counter()
        update.zero_grad()
        by_double_backward(lambda x: model(x, *given.graph), [given.positions], given.loss, phase)
        middle = time.perf_counter()
        update.step()
        phases.append(("update", middle, middle, time.perf_counter()))
        return began

    runs = []
    for _ in range(arguments.steps + 2):
        world.barrier()
        began = step()
        total = time.perf_counter() - began
        runs.append((total, sum(asked - start for _, start, asked, _ in spans), sum(e - a for _, _, a, e in spans)))
    seconds, under_way, waited = (statistics.median(run[place] for run in runs[2:]) for place in range(3))

    def since(found: list[Span]) -> list[Span]:
        return [(what, *(moment - began for moment in moments)) for what, *moments in found]

    return {
        "seconds": seconds,
        "under_way": under_way,
        "waited": waited,
        "spans": since(spans),
        "phases": since(phases),
    }


def plot(found: dict[str, Any], file: Path) -> None:
    """Phases above, collectives below: light while the rank computes on, dark while it waits."""
    from matplotlib.figure import Figure

    kinds = sorted({what for what, *_ in found["spans"]})
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(kinds)), layout="constrained")
    axes = figure.subplots()
    for what, began, _, end in found["phases"]:
        axes.broken_barh([(began, end - began)], (len(kinds) - 0.35, 0.7), color="0.85", edgecolor="white")
        axes.text((began + end) / 2, len(kinds), what, ha="center", va="center", fontsize=8)
    for what, began, asked, end in found["spans"]:
        row = kinds.index(what)
        axes.broken_barh([(began, asked - began)], (row - 0.3, 0.6), color="#9ecae1", edgecolor="white", linewidth=0.5)
        axes.broken_barh([(asked, end - asked)], (row - 0.3, 0.6), color="#d55e00")
    axes.set(
        yticks=range(len(kinds) + 1),
        yticklabels=[*kinds, "phase"],
        xlabel="seconds; light: under way, dark: waited for",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("replica", 1), ("unit", 2), ("blocks", 8), ("width", 256), ("atoms", 60), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    ranks = arguments.replica * arguments.unit
    found = run_rank_processes(ranks, lambda world: measure(world, arguments), 300.0)[0]
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    shown = {name: found[name] for name in ("seconds", "under_way", "waited")}
    print(json.dumps({"setting": vars(arguments) | {"plot": None}, "machine": machine, **shown}, indent=1))
    print(f"{found['waited'] / found['seconds']:.1%} of the step is spent waiting for other ranks")
    if arguments.plot:
        plot(found, arguments.plot)


if __name__ == "__main__":
    main()
