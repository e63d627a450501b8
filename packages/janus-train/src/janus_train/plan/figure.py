"""A plot of how a step scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from janus_train.plan.scaling import ScalingRow

_PARTS = {
    "products": ("products of matrices", "#0072b2"),
    "elementwise": ("elementwise work", "#56b4e9"),
    "starting": ("starting operations", "#cc79a7"),
    "update": ("update", "#009e73"),
    "unit": ("waiting inside the unit", "#e69f00"),
    "replicas": ("waiting for gradients", "#d55e00"),
}


def parts_of(row: ScalingRow) -> dict[str, float]:
    """Seconds of a step by what a reader asks for; what hides behind computing is left out of the waiting."""
    parts, seconds = row.plan.seconds.parts, row.plan.seconds
    inside = sum(parts[kind] for kind in ("halo", "experts", "rows", "sums"))
    return {
        **{name: parts[name] for name in ("products", "elementwise", "starting", "update")},
        "unit": inside,
        "replicas": seconds.with_overlap - seconds.computing - inside,
    }


def draw_scaling(tables: Mapping[str, Sequence[ScalingRow]], path: Path) -> None:
    """Draws where the time of steps on more and more devices goes, and their efficiency, one column a table; as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 3.6 * len(tables), 5.0), layout="constrained")
    columns = figure.subplots(2, len(tables), squeeze=False)
    for column, (title, rows) in enumerate(tables.items()):
        above, below = columns[0, column], columns[1, column]
        places, bottom = range(len(rows)), [0.0] * len(rows)
        for name, (label, colour) in _PARTS.items():
            heights = [100 * parts_of(row)[name] / row.plan.seconds.with_overlap for row in rows]
            above.bar(places, heights, bottom=bottom, color=colour, label=label)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        below.plot(places, [100 * row.efficiency for row in rows], "o-", color="#4d4d4d")
        for place, row in zip(places, rows, strict=True):
            below.annotate(
                f"{100 * row.efficiency:.0f} %", (place, 100 * row.efficiency), xytext=(0, 6),
                textcoords="offset points", ha="center", fontsize=8,
            )  # fmt: skip
            above.text(place, 101, f"{row.plan.seconds.with_overlap:.3g} s", ha="center", va="bottom", fontsize=8)
        above.set(title=title, xticks=places, xticklabels=[], ylim=(0, 112))
        below.set(xticks=places, ylim=(0, 125), xlabel="devices")
        below.set_xticklabels([f"{row.plan.layout.devices:,}" for row in rows], fontsize=8)
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
    columns[0, 0].set_ylabel("of the time of a step, %")
    columns[1, 0].set_ylabel("efficiency, %")
    figure.legend(*columns[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
