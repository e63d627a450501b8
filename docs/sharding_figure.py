"""Draws `docs/sharding.svg`: which weights are whole when, in a step by each way: `python docs/sharding_figure.py`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from janus_comm import MemoryAccounting, by_double_backward, by_tangent, make_mesh
from janus_comm.communicator import Communicator
from janus_comm.sharding import GatherNodes, StockShards, make_device_mesh
from janus_comm.testing import run_rank_processes

BLOCKS = 6
Spans = list[tuple[int, float, float]]
"""Block, from, to."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, rows: Tensor) -> Tensor:
        return rows + torch.tanh(self.linear(rows))


class Clock:
    """Counts visits of blocks, and knows when a phase began."""

    def __init__(self, phase: Callable[[str], object]) -> None:
        self.now, self.began, self._phase = 0.0, [], phase

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.began.append((name, self.now))
        self.now += 2
        with self._phase(name):
            yield


def step(world: Communicator, way: str) -> tuple[Spans, list[tuple[str, float]], float]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), *(Block() for _ in range(BLOCKS)))
    blocks, mesh, events = list(model)[1:], make_mesh(world, 1, 2), []
    if way == "tangent on FSDP2":
        stock = StockShards(model, blocks, make_device_mesh(mesh, torch.device("cpu")))
        clock, route = Clock(stock.phase), by_tangent
        for index, block in enumerate(blocks):
            watch_stock(block, lambda come, k=index: events.append((k, come, tick(clock, come))))
    else:
        memory = Watched(lambda name, come: events.append((int(name) - 1, come, tick(clock, come))))
        nodes = GatherNodes(model, blocks, mesh, regather=way == "regather", memory=memory)
        clock, route = Clock(nodes.phase), by_double_backward
    for again in range(2):
        if again:  # the second step knows the order of the first
            events.clear()
            clock.began.clear()
            clock.now = 0.0
        route(lambda x: model(x).sum(1), [torch.ones(2, 3)], lambda o, g: (g[0] ** 2).sum(), clock.phase)
    spans: Spans = []
    since: dict[int, float] = {}
    for index, come, now in events:
        if come:
            since.setdefault(index, now)
        elif index in since:
            spans.append((index, since.pop(index), now))
    return spans, clock.began, clock.now


def tick(clock: Clock, come: bool) -> float:
    clock.now += 1 if come else 0.5
    return clock.now


class Watched(MemoryAccounting):
    """Tells when a block's weights come and go."""

    def __init__(self, told: Callable[[str, bool], None]) -> None:
        super().__init__()
        self._told = told

    def allocate(self, name: str, bytes: int) -> None:
        if name.isdigit():
            self._told(name, True)

    def free(self, name: str) -> None:
        if name.isdigit():
            self._told(name, False)


def watch_stock(block: nn.Module, told: Callable[[bool], None]) -> None:
    group = block._get_fsdp_state()._fsdp_param_group
    come, go = group._to_unsharded, group._to_sharded
    group._to_unsharded = lambda: (told(True), come())[1]
    group._to_sharded = lambda: (told(False), go())[1]


def main() -> None:
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    for axes, way in zip(figure.subplots(3, 1), ("keep", "regather", "tangent on FSDP2"), strict=True):
        spans, began, end = run_rank_processes(2, lambda world, w=way: step(world, w))[0]
        for index, start, stop in spans:
            axes.broken_barh(
                [(start, stop - start)], (index + 0.6, 0.8), color="#0072b2" if "F" not in way else "#e69f00"
            )
        for name, start in began:
            axes.axvline(start, color="0.6", linewidth=0.8)
            axes.text(start + 0.2, BLOCKS + 0.75, name, fontsize=8, color="0.3")
        axes.set(ylim=(0.4, BLOCKS + 1.6), xlim=(0, end), xticks=[], yticks=range(1, BLOCKS + 1))
        axes.set_ylabel(f"{way}\nblock", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("one step of training on forces: bars are weights that are whole on a rank")
    figure.savefig(Path(__file__).parent / "sharding.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
