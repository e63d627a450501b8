"""Draws `docs/moe.svg`, a step with experts at fixed homes and as planned: `python docs/moe_figure.py`."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from janus_moe import initial_selection
from janus_moe.cost import CostModel
from janus_moe.planner import ExpertPlan, plan_experts, rows_move
from janus_moe.testing import MIXTURES, rows_of_batch

RANKS, EXPERTS, TOP_K, WIDTH, HIDDEN, BLOCKS = 8, 128, 4, 1024, 200, 6
COST = CostModel.from_rates(WIDTH, HIDDEN, flops_per_second=3e13, bytes_per_second=2e11, seconds_per_exchange=2e-5)
PARTS = {
    "computing": "pair",
    "moving rows": "row",
    "moving weights": "unit",
    "waiting for exchanges to begin": "exchange",
}
COLOURS = ("#0072b2", "#d55e00", "#e69f00", "0.6")


def milliseconds(plan: ExpertPlan, part: str) -> np.ndarray:
    """Modelled time of each rank in all layers, of one kind."""
    only = replace(CostModel(0, 0, 0), **{part: getattr(COST, part)})
    return plan.times(only).sum(0) * 1e-9


def main() -> None:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", squeeze=False, height_ratios=[1, 1]).T
    for column, name in zip(panels, ("oxides", "alloys"), strict=True):
        edges, atoms = rows_of_batch(MIXTURES[name], RANKS, 600, 0)
        rows = np.stack([edges, atoms] * BLOCKS)
        work = rows, np.stack([initial_selection(EXPERTS, TOP_K).numpy()] * len(rows)), EXPERTS, HIDDEN
        for axes, title, plan in zip(
            column, ("experts at fixed homes", "as planned"), (rows_move(*work), plan_experts(*work, COST)), strict=True
        ):
            left = np.zeros(RANKS)
            for (label, part), colour in zip(PARTS.items(), COLOURS, strict=True):
                axes.barh(range(RANKS), milliseconds(plan, part), left=left, color=colour, label=label, height=0.8)
                left += milliseconds(plan, part)
            axes.set(yticks=range(RANKS), ylabel="rank", ylim=(RANKS - 0.4, -0.6))
            axes.tick_params(axis="y", labelsize=6)
            axes.set_title(f"{name}: {title}, slowest over mean {left.max() / left.mean():.2f}", fontsize=8)
            axes.spines[["top", "right"]].set_visible(False)
        column[1].set_xlabel("modelled ms of a training step")
    panels[0][1].legend(fontsize=7, frameon=False, loc="center right")
    figure.savefig(Path(__file__).with_name("moe.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
