"""Draws `docs/parallelism.svg`, who holds what and what moves in a step: `python docs/parallelism_figure.py`."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from janus_graph import Structure
from janus_graph.partition import partition_atoms

RANKS = 4
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
PHASES = {"forward": 1.0, "inner": 1.0, "outer": 4.0}
MOVES = {
    "whole weights of a block": ("forward", "inner", "outer"),
    "rows of neighbours": ("forward", "inner", "outer"),
    "experts that are used": ("forward",),
    "gradients, to their shards": ("outer",),
    "sums: loss, norm": ("end",),
}


def batch() -> tuple[list[Structure], list[np.ndarray]]:
    """A slab and some molecules, flat, and who owns their atoms."""
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(np.arange(22), np.arange(7), indexing="ij"), -1).reshape(-1, 2)
    flat = [grid * 1.0 + rng.normal(0, 0.08, grid.shape)]
    for place in range(9):
        size = int(rng.integers(4, 9))
        turns = np.arange(size) * 2 * np.pi / size
        ring = 0.13 * size * np.stack([np.cos(turns), np.sin(turns)], -1)
        flat.append(ring + np.array([1.4 + 2.4 * place, -3.0]))
    structures = [
        Structure(np.full(len(xy), 6), np.c_[xy, np.zeros(len(xy))], np.zeros((3, 3)), [False] * 3) for xy in flat
    ]
    work = [np.ones(len(structure), dtype=np.int64) for structure in structures]
    return structures, partition_atoms(structures, work, RANKS, 1.5)


def draw_batch(axes: Axes) -> None:
    for structure, owner in zip(*batch(), strict=True):
        xy = structure.positions[:, :2]
        near = np.linalg.norm(xy[:, None] - xy, axis=2) < 1.3
        for a, b in zip(*np.nonzero(np.triu(near, 1)), strict=True):
            cut = owner[a] != owner[b]
            axes.plot(*xy[[a, b]].T, color="0.1" if cut else "0.8", lw=1.2 if cut else 0.6, zorder=1)
        axes.scatter(*xy.T, c=[COLOURS[rank] for rank in owner], s=16, zorder=2)
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.set_title("the unit's batch: large structures cut,\nsmall ones whole; dark edges cross", fontsize=8)
    axes.spines[:].set_visible(False)


def draw_weights(axes: Axes) -> None:
    for row, (name, parts) in enumerate({"block": 1, "experts": 5}.items()):
        for part in range(parts):
            for rank, colour in enumerate(COLOURS):
                x, width = part * 4.4 / parts, 4.0 / parts / RANKS
                axes.add_patch(Rectangle((x + rank * width, -row * 1.6), width, 1, color=colour, lw=0))
        axes.text(-0.2, -row * 1.6 + 0.5, name, ha="right", va="center", fontsize=8)
    axes.set(xlim=(-1.6, 4.6), ylim=(-2.2, 1.6), xticks=[], yticks=[])
    axes.set_title("every parameter and every expert, with its\nmoments: a slice on each rank", fontsize=8)
    axes.spines[:].set_visible(False)


def draw_step(axes: Axes) -> None:
    starts, at = {}, 0.0
    for phase, length in PHASES.items():
        starts[phase] = (at, length)
        axes.axvspan(at, at + length, color="0.93" if len(starts) % 2 else "0.97", lw=0)
        axes.text(at + length / 2, len(MOVES) - 0.35, phase, ha="center", fontsize=8)
        at += length
    starts["end"] = (at, 0.35)
    for row, (name, phases) in enumerate(reversed(MOVES.items())):
        for phase in phases:
            begin, length = starts[phase]
            axes.add_patch(Rectangle((begin + 0.04, row - 0.22), length - 0.08, 0.44, color="#56788f", lw=0))
        axes.text(-0.1, row, name, ha="right", va="center", fontsize=8)
    axes.set(xlim=(0, at + 0.4), ylim=(-0.6, len(MOVES)), yticks=[], xticks=[])
    axes.set_title("what moves between the ranks of a unit, and when", fontsize=8)
    axes.spines[:].set_visible(False)


def main() -> None:
    figure = Figure(figsize=(8.2, 4.0), layout="constrained")
    panels = figure.subplot_mosaic([["batch", "weights"], ["step", "step"]], width_ratios=[1.5, 1])
    draw_batch(panels["batch"])
    draw_weights(panels["weights"])
    draw_step(panels["step"])
    for rank, colour in enumerate(COLOURS):
        panels["weights"].scatter([], [], c=colour, s=16, label=f"rank {rank}")
    panels["weights"].legend(fontsize=7, ncols=4, loc="lower center", frameon=False, handletextpad=0, columnspacing=0.6)
    figure.savefig(Path(__file__).parent / "parallelism.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
