"""Draws `docs/first-run.svg` from a finished run: `python docs/first_run_figure.py runs/nano-001`."""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure


def draw(run: Path, output: Path) -> None:
    """Validation force errors of every task over the steps, as parts of the error of predicting no forces."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    validations = [line for line in lines if line["kind"] == "val"]
    minutes = [line["seconds"] / 60 for line in validations]
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = figure.subplots()
    for task, colour in zip(validations[-1]["tasks"], ("#0072b2", "#e69f00", "#009e73", "#cc79a7"), strict=False):
        errors = [line["tasks"][task]["forces_mae"] / line["tasks"][task]["forces_mae_zero"] for line in validations]
        axes.plot(minutes, errors, marker="o", color=colour, label=task)
    axes.axhline(1 / 3, color="0.5", linewidth=0.8, linestyle="--")
    axes.set(xlabel="minutes on 2 CPU cores", ylabel="force MAE / that of no forces", yscale="log", xlim=(0, None))
    axes.set_yticks([0.05, 0.1, 0.2, 0.5, 1.0], ["0.05", "0.1", "0.2", "0.5", "1"])
    axes.legend(frameon=False, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(__file__).parent / "first-run.svg")
