"""Plots as SVG text that stands inside a page. No text of a user gets in here; that is the page's business."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any, NamedTuple

import numpy as np

from janus_train.report.periodic_table import ATOMIC_NUMBERS
from janus_train.report.quantities import LARGEST, on_axis
from janus_train.report.read import ExpertLayer, FloatArray

# Okabe and Ito's colours, which colour-blind people tell apart, without the yellow that is lost on white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
_DASHES = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))

# A curve is drawn in this many parts at most.
_PARTS = 120

# Points of a parity plot that are drawn; the errors are counted over all.
_POINTS = 4000

# Inches beside the coloured cells of a map of experts: numbers, bars, scale.
_BESIDE_MAP = 2.7

# Ticks stand at multiples of these times a power of ten.
_STEPS = (1, 2, 5, 10)


class Style(NamedTuple):
    """How a curve is drawn: its colour, and lengths of dashes and gaps (none: a full line)."""

    colour: str
    dashes: tuple[float, ...]


class Curve(NamedTuple):
    """Numbers over numbers, how they are drawn, and what a trivial model would reach."""

    x: FloatArray
    y: FloatArray
    style: Style
    baseline: float = math.nan


def style_of(place: int) -> Style:
    """The style of the curve at this place of a legend; the first 28 differ."""
    rounds, colour = divmod(place, len(_COLOURS))
    return Style(_COLOURS[colour], _DASHES[rounds % len(_DASHES)])


def parts_of(x: FloatArray, y: FloatArray, most: int = _PARTS) -> FloatArray:
    """A curve in at most this many parts of as many points each, [4, parts]: x, lowest, median and highest y.

    Points without a finite y are left out; with few points each is a part of its own.
    """
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    if not len(x):
        return np.empty((4, 0))
    size = -(-len(x) // most)
    pieces = [(x[start : start + size], y[start : start + size]) for start in range(0, len(x), size)]
    return np.array(
        [(float(np.mean(xs)), float(np.min(ys)), float(np.median(ys)), float(np.max(ys))) for xs, ys in pieces]
    ).T


def draw_curves(
    name: str, curves: Sequence[Curve], x_label: str, log: bool = False, size: tuple[float, float] = (5.6, 2.7)
) -> str:
    """Curves as an SVG; empty text if no curve has a finite point. The name must differ from plot to plot.

    A line is the median of each part of a curve, the band around it goes from the lowest to the highest. On a
    logarithmic axis numbers that are not positive are left out.
    """
    lowest = 1 / LARGEST if log else -math.inf
    drawn = [(curve, parts_of(curve.x, np.where(curve.y >= lowest, curve.y, np.nan))) for curve in curves]
    drawn = [(curve, parts) for curve, parts in drawn if parts.size]
    if not drawn:
        return ""
    from matplotlib.ticker import MaxNLocator

    with _figure(name, size) as (figure, finish):
        axes = figure.add_axes((0.09, 0.4 / size[1], 0.89, 1 - 0.5 / size[1]))
        for curve, (x, low, middle, high) in drawn:
            colour = curve.style.colour
            axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
            marker = "o" if len(x) <= 40 else ""
            linestyle = (0, curve.style.dashes) if curve.style.dashes else "solid"
            axes.plot(x, middle, color=colour, linestyle=linestyle, marker=marker, markersize=2.6)
            if curve.baseline > 0:
                axes.axhline(curve.baseline, color=colour, linewidth=0.9, linestyle=(0, (1, 2)))
        _set_limits(axes, drawn, log)
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(9, steps=_STEPS, integer=x_label == "step", min_n_ticks=1))
        axes.xaxis.set_major_formatter(on_axis)
        return finish()


def draw_parity(name: str, pairs: FloatArray, scale: float, unit: str) -> str:
    """Predictions over labels [n, 2], coloured by how many lie there, above a histogram of the errors.

    Args:
        name: must differ from plot to plot.
        pairs: label and prediction, at least one.
        scale: what the axes of the upper plot are multiplied by.
        unit: of the upper plot after that. The errors below are in thousandths of the pairs' unit.
    """
    from matplotlib.ticker import MaxNLocator

    with _figure(name, (3.5, 4.45)) as (figure, finish):
        axes = figure.add_axes((0.17, 0.35, 0.8, 0.8 * 3.5 / 4.45))
        shown = scale * pairs[:: -(-len(pairs) // _POINTS)]
        density = _density(shown)
        order = np.argsort(density, kind="stable")
        colours = np.log1p(density[order])
        low, high = float(shown.min()), float(shown.max())
        margin = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
        limits = (low - margin, high + margin)
        axes.plot(limits, limits, color="#8a94a3", linewidth=0.8, zorder=1)
        axes.scatter(*shown[order].T, c=colours, s=7, linewidths=0, cmap="viridis", rasterized=True, zorder=2)
        axes.set(xlim=limits, ylim=limits, xlabel=f"label, {unit}", ylabel=f"prediction, {unit}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, steps=_STEPS))
            axis.set_major_formatter(on_axis)
        errors = 1000 * (pairs[:, 1] - pairs[:, 0])
        reach = histogram_reach(errors)
        below = figure.add_axes((0.17, 0.11, 0.8, 0.13))
        below.stairs(*np.histogram(errors, bins=61, range=(-reach, reach)), fill=True, color="#5f7187")
        below.axvline(0, color="#10151d", linewidth=0.7)
        below.set(xlim=(-reach, reach), yticks=[], xlabel=f"prediction − label, m{unit.removeprefix('m')}")
        below.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
        below.xaxis.set_major_formatter(on_axis)
        below.spines["left"].set_visible(False)
        return finish()


def histogram_reach(errors: FloatArray) -> float:
    """How far a histogram of the errors goes to both sides: a bit further than 98 in 100 of them."""
    return float(np.quantile(np.abs(errors), 0.98)) * 1.25 or 1.0


def draw_experts(name: str, layer: ExpertLayer) -> str:
    """Weights of the experts (rows) for the elements (columns) in colours, and the share of each in the work.

    What counts for nothing is grey. The name must differ from plot to plot.
    """
    from matplotlib.ticker import MaxNLocator

    elements, experts = layer.weights.shape
    width, height = _map_size(layer)
    left, top, bottom = 0.45, 0.08, 0.5
    size = (width + _BESIDE_MAP, top + height + bottom)
    with _figure(name, size) as (figure, finish):

        def place(start: float, wide: float) -> Any:
            return figure.add_axes((start / size[0], bottom / size[1], wide / size[0], height / size[1]))

        axes, load, scale = place(left, width), place(left + width + 0.15, 1.3), place(left + width + 1.75, 0.09)
        weights = np.where(layer.weights == 0, np.nan, layer.weights).T
        highest, lowest = float(layer.weights.max()), min(0.0, float(layer.weights.min()))
        image = axes.imshow(
            weights, aspect="auto", interpolation="none", cmap="cividis_r", vmin=lowest,
            vmax=highest if highest > lowest else lowest + 1,
        )  # fmt: skip
        axes.set_facecolor("#eef0f3")
        symbols = [symbol if symbol in ATOMIC_NUMBERS else "?" for symbol in layer.symbols]
        crowded = width / elements < 0.15
        # In a crowd every other symbol stands a line lower.
        axes.set_xticks(range(0, elements, 1 + crowded), symbols[:: 1 + crowded])
        if crowded:
            axes.set_xticks(range(1, elements, 2), symbols[1::2], minor=True)
            axes.tick_params(which="minor", length=0, labelsize=6.5, pad=10)
        stride = max(1, math.ceil(0.13 * experts / height))
        axes.set_yticks(range(0, experts, stride))
        axes.plot(*_lines_between(elements, experts), color="white", linewidth=0.6)
        axes.set(xlim=(-0.5, elements - 0.5), ylim=(experts - 0.5, -0.5))
        axes.grid(visible=False)
        axes.tick_params(length=0, labelsize=6.5)
        axes.spines[:].set_visible(False)
        axes.set_ylabel("expert", fontsize=7)
        figure.colorbar(image, cax=scale, format=on_axis, ticks=MaxNLocator(4)).outline.set_visible(False)
        scale.grid(visible=False)
        scale.tick_params(labelsize=6.5, length=0)
        scale.set_xlabel("weight", fontsize=7)
        _draw_load(load, layer)
        load.set_ylim(axes.get_ylim())
        return finish()


def expert_map_width(layer: ExpertLayer) -> int:
    """Pixels that the drawing of a layer should be wide on a screen."""
    return round(96 * 1.2 * (_map_size(layer)[0] + _BESIDE_MAP))


def _map_size(layer: ExpertLayer) -> tuple[float, float]:
    """Inches that the coloured cells take."""
    elements, experts = layer.weights.shape
    across, up = (0.17 if elements <= 45 else 0.125), (0.17 if experts <= 32 else 0.1)
    return max(across * elements, 1.2), max(up * experts, 0.7)


def _lines_between(columns: int, rows: int) -> tuple[FloatArray, FloatArray]:
    """The lines between the cells of a map as one curve with gaps, which is drawn as one path."""
    x = [(place - 0.5, place - 0.5, math.nan) for place in range(1, columns)] + [(-0.5, columns, math.nan)] * (rows - 1)
    y = [(-0.5, rows, math.nan)] * (columns - 1) + [(place - 0.5, place - 0.5, math.nan) for place in range(1, rows)]
    return np.array(x, dtype=np.float64).ravel(), np.array(y, dtype=np.float64).ravel()


def _draw_load(axes: Any, layer: ExpertLayer) -> None:
    experts = len(layer.load)
    shares = 100 * layer.load / (layer.load.sum() or 1)
    axes.barh(range(experts), shares, height=0.72, color="#0072b2")
    axes.axvline(100 / experts, color="#d55e00", linewidth=0.9, linestyle=(0, (3, 2)))
    reach = max(1.05 * shares.max(), 200 / experts)
    for expert in np.flatnonzero(layer.load == 0):
        axes.text(0.03 * reach, expert, "unused", color="#d55e00", fontsize=6.5, va="center")
    axes.set_xlim(0, reach)
    axes.set_xlabel("share of rows, %", fontsize=7)
    axes.set_yticks([])
    axes.tick_params(labelsize=6.5)


def _density(points: FloatArray) -> FloatArray:
    """How many points lie in the same cell of a 50 × 50 grid as each point."""
    low = points.min()
    cells = np.floor((points - low) / (float(np.ptp(points)) or 1.0) * 49.999).astype(np.int64)
    _, cell, counts = np.unique(cells @ np.array([50, 1]), return_inverse=True, return_counts=True)
    return counts[cell].astype(np.float64)


def _set_limits(axes: Any, drawn: Sequence[tuple[Curve, FloatArray]], log: bool) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    baselines = [curve.baseline for curve, _ in drawn if curve.baseline > 0]
    low = min(min(float(parts[1].min()) for _, parts in drawn), *baselines, math.inf)
    high = max(max(float(parts[3].max()) for _, parts in drawn), *baselines, -math.inf)
    if log:
        axes.set_yscale("log")
        factor = (high / low) ** 0.06 if high > 1.01 * low else 1.2
        axes.set_ylim(low / factor, high * factor)
        span = high / low
        axes.yaxis.set_minor_locator(NullLocator())
        if span < 5:
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        else:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 300 else (1,), numticks=9))
    else:
        margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(0 if 0 <= low < 0.5 * high else low - margin, high + margin)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    axes.yaxis.set_major_formatter(on_axis)


@contextmanager
def _figure(name: str, size: tuple[float, float]) -> Iterator[tuple[Any, Callable[[], str]]]:
    """A figure under settings of our own, and what turns it into SVG; a user's settings neither count nor change."""
    import matplotlib
    from matplotlib.figure import Figure

    ink, pale = "#3c4654", "#e3e7ec"
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False, "font.size": 8,
                "font.sans-serif": ["DejaVu Sans"],
                "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#8a94a3",
                "axes.linewidth": 0.6, "axes.labelcolor": ink, "axes.grid": True, "axes.axisbelow": True,
                "grid.color": pale, "grid.linewidth": 0.6, "xtick.color": "#8a94a3", "ytick.color": "#8a94a3",
                "xtick.labelcolor": ink, "ytick.labelcolor": ink, "xtick.major.size": 2.5, "ytick.major.size": 0,
                "lines.linewidth": 1.5,
            }
        )  # fmt: skip
        figure = Figure(figsize=size)

        def finish() -> str:
            text = StringIO()
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(text, format="svg", dpi=110, metadata=nothing)
            return _inline(text.getvalue(), name)

        yield figure, finish


def _inline(svg: str, name: str) -> str:
    """What of an SVG file belongs inside a page: no prologue, no names of groups, no size but its proportions."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<g/>|<g id=\"[^\"]*\"/>| transform=\"rotate\(-0 [^\"]*\"|font-family: [^;\"]*; ", "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    # A hundredth of a point is finer than any screen.
    svg = re.sub(r' (d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    body = re.sub(r"\n\s*", "\n", body)
    return f'<svg {box[0]} role="img" aria-label="{name}">{body}'.strip()
