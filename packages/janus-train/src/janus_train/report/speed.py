"""What the report says of throughput, memory and what ranks sent to each other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from janus_train.report import markup
from janus_train.report.markup import Section
from janus_train.report.plots import Curve, draw_curves, style_of
from janus_train.report.quantities import three_figures
from janus_train.report.read import FloatArray, Run, column, median_of

# Time is counted in the longest of these of which a run took three.
_CLOCK = (("hours", 3600), ("minutes", 60), ("seconds", 1))


def speed(run: Run) -> Section:
    """Throughput, memory and communication over time."""
    if not run.train:
        return Section("speed", "Speed", markup.none("The log holds no step of training."))
    seconds = column(run.train, "seconds")
    longest = float(np.nanmax(seconds)) if np.isfinite(seconds).any() else 0.0
    unit, length = next((unit, length) for unit, length in _CLOCK if longest >= 3 * length or length == 1)
    time = seconds / length
    kinds = (
        ("structures_per_s", "Structures per second"),
        ("atoms_per_s", "Atoms per second"),
        ("edges_per_s", "Edges per second"),
        ("tflops_per_s", "TFLOP/s of the first process"),
        ("memory_mb", "Memory, highest so far, MB"),
    )
    plots = []
    for place, (key, title) in enumerate(kinds):
        curve = Curve(time, column(run.train, key), style_of(place))
        if key == "tflops_per_s" and not np.isfinite(curve.y).any():
            continue  # not every model's operations are known
        median = "" if key == "memory_mb" else f"median {three_figures(median_of(curve.y))}"
        plots.append(markup.plot(title, median, draw_curves(key.replace("_", "-"), [curve], unit, size=(5.6, 1.9))))
    body = [f'<div class="plots two">{"".join(plots)}</div>', *_traffic(run, time, unit)]
    return Section("speed", "Speed", "\n".join(body))


def _traffic(run: Run, time: FloatArray, unit: str) -> list[str]:
    """What the first process sent in a step, by kind."""
    sent = sent_in_a_step(run)
    if not sent:
        return ['<p class="soft">The first process sent nothing to others.</p>']
    curves = [Curve(time[1:], values / 1e6, style_of(place)) for place, values in enumerate(sent.values())]
    rows = [[kind, three_figures(median_of(values) / 1e6), three_figures(np.nanmax(values) / 1e6)]
            for kind, values in sent.items()]  # fmt: skip
    drawing = draw_curves("sent", curves, unit)
    return [
        markup.legend([(kind, style_of(place)) for place, kind in enumerate(sent)]),
        '<div class="plots two">'
        + markup.plot("Sent in a step, MB", "by the first process, by kind", drawing)
        + markup.table(["kind", "MB in a step\n(median)", "at most"], rows)
        + "</div>",
    ]


def sent_in_a_step(run: Run) -> dict[str, FloatArray]:
    """Bytes that the first process sent in a step, between one line of training and the next, by kind.

    The log counts from the start of a process: where the count falls, the run was started again, and that part is NaN.
    """
    kinds: dict[str, None] = {}
    for line in run.train:
        if isinstance(line.get("bytes_sent"), Mapping):
            kinds |= dict.fromkeys(line["bytes_sent"])
    steps = np.diff(column(run.train, "step"))
    steps = np.where(steps > 0, steps, np.nan)
    found = {}
    for kind in kinds:
        more = np.diff(np.nan_to_num(column(run.train, "bytes_sent", kind)))
        values = np.where(more >= 0, more, np.nan) / steps
        if np.nansum(values) > 0:
            found[kind] = values
    return found
