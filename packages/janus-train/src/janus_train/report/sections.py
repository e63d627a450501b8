"""What the report says, section by section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from janus_train.report import markup
from janus_train.report.markup import Section
from janus_train.report.periodic_table import ATOMIC_NUMBERS, SYMBOLS, draw_groups, draw_table
from janus_train.report.plots import (
    Curve,
    Style,
    draw_curves,
    draw_experts,
    draw_parity,
    expert_map_width,
    histogram_reach,
    style_of,
)
from janus_train.report.quantities import MISSING, as_number, duration, milli, ratio, three_figures, whole
from janus_train.report.read import ExpertLayer, FloatArray, Run, column, median_of

# Expert layers that are shown at once; the others are folded away.
_LAYERS_SHOWN = 4
# Groups of frames with errors that are shown.
_GROUPS_SHOWN = 50

# Property, factor and unit of the axes of its parity plot, and unit of its errors.
_PARITY = (
    ("energy", 1.0, "eV/atom", "meV/atom"),
    ("forces", 1.0, "eV/Å", "meV/Å"),
    ("stress", 1000.0, "meV/Å³", "meV/Å³"),
)
_EXPERT_STATISTICS = ("dead", "max_over_mean", "load_entropy", "gate_entropy", "effective_experts")
_TERMS = ("energy", "forces", "stress", "magmoms")
_TOTAL = Style("#10151d", ())


def state_of(run: Run) -> str:
    """How far the run got, in a sentence."""
    lines = [*run.train, *run.val]
    if not lines:
        return "Training report. Nothing was logged."
    step = int(column(lines, "step").max())
    place = as_number(run.evaluation.get("step"))
    if np.isnan(place):
        return f"Training report. The log goes to step {step:,}; the finished model has not been evaluated."
    return f"Training report. The log goes to step {step:,}; the errors are those of the model of step {place:,.0f}."


def summary(run: Run) -> Section:
    """Headline numbers and the final errors by task."""
    body = [markup.cards(_headlines(run)), markup.remarks("Not in this report", run.remarks)]
    body.append(markup.remarks("Attention", attention(run)))
    warnings = run.data.get("warnings")
    if isinstance(warnings, list):
        body.append(markup.remarks("Warnings about the data", [str(warning) for warning in warnings]))
    if not run.errors:
        return Section("summary", "Summary", "\n".join([*body, markup.none("No validation has been made yet.")]))
    source = (
        "Validation errors of the finished model"
        if "tasks" in run.evaluation
        else "Errors of the last validation logged"
    )
    body += [
        f"<h3>{source}</h3>",
        _errors_table(run.errors),
        '<p class="soft">The ratio says how many times smaller the force MAE is than that of a model that predicts '
        "no forces at all: near 1, nothing has been learnt.</p>",
    ]
    if run.groups:
        body.append(_groups(run))
    if run.start:
        body += ["<h3>Validation errors of the weights that the run started from</h3>", _errors_table(run.start)]
    return Section("summary", "Summary", "\n".join(body))


def attention(run: Run) -> list[str]:
    """What should not be overlooked: steps without a finite loss, validations that are none for the better."""
    found = []
    lost = int((~np.isfinite(column(run.train, "loss"))).sum())
    if lost:
        found.append(f"{lost} of {len(run.train)} logged steps had no finite loss")
    skipped = column(run.train[-1:], "skipped")
    if len(skipped) and skipped[0] > 0:
        found.append(f"{whole(skipped[0])} steps were skipped; their structures are in bad_batches.extxyz")
    watched = run.val[-1].get("watch") if run.val else None
    notice = watched.get("notice") if isinstance(watched, Mapping) else None
    return [*found, notice] if isinstance(notice, str) else found


def _groups(run: Run) -> str:
    """Errors of the groups of frames with the largest force errors, folded away."""

    def error(name: str) -> float:
        known = (as_number(run.groups[name].get(key)) for key in ("forces_mae", "energy_mae"))
        return next((value for value in known if not np.isnan(value)), 0.0)

    worst = sorted(run.groups, key=error, reverse=True)[:_GROUPS_SHOWN]
    title = f"Errors by group: the {len(worst)} largest of {len(run.groups)}"
    return markup.fold(title, f"<div>{_errors_table({name: run.groups[name] for name in worst}, 'group')}</div>")


def _errors_table(tasks: Mapping[str, Mapping[str, Any]], name: str = "task") -> str:
    """Errors by task, or by what else has some."""
    magmoms = any(not np.isnan(as_number(errors.get("magmoms_mae"))) for errors in tasks.values())
    header = [
        name, "structures", "atoms", "energy\nMAE\nmeV/atom", "energy\nRMSE\nmeV/atom", "energy\nshift\nmeV/atom",
        "force\nMAE\nmeV/Å", "force\nRMSE\nmeV/Å", "zero-force\nMAE\nmeV/Å", "ratio", "stress\nMAE\nmeV/Å³",
    ] + ["magmom\nMAE\nmμB"] * magmoms  # fmt: skip
    rows = []
    for task, errors in tasks.items():
        forces, zero = errors.get("forces_mae"), errors.get("forces_mae_zero")
        row = [task, whole(errors.get("structures")), whole(errors.get("atoms"))]
        row += [milli(errors.get(f"energy_{kind}")) for kind in ("mae", "rmse", "shift")]
        row += [milli(errors.get(f"forces_{kind}")) for kind in ("mae", "rmse")]
        row += [milli(zero), ratio(forces, zero), milli(errors.get("stress_mae"))]
        rows.append(row + [milli(errors.get("magmoms_mae"))] * magmoms)
    return markup.table(header, rows)


def learning(run: Run) -> Section:
    """Losses and errors over steps."""
    if not run.train and not run.val:
        return Section("learning", "Learning", markup.none("The log holds no step."))
    body = [
        *_loss_plots(run),
        *_error_plots(run),
        _rate_plots(run),
        '<p class="soft">Long curves are drawn in at most 120 parts: the line is the median of a part, the band goes '
        "from its lowest to its highest value.</p>",
    ]
    return Section("learning", "Learning", "\n".join(body))


def _loss_plots(run: Run) -> list[str]:
    """Losses over steps, and the terms of that of training."""
    step, val = column(run.train, "step"), column(run.val, "step")
    terms = [("total", Curve(step, column(run.train, "loss"), _TOTAL))]
    for place, term in enumerate(_TERMS):
        values = column(run.train, f"loss_{term}")
        if np.isfinite(values).any():
            terms.append((term, Curve(step, values, style_of(place))))
    total = Curve(val, column(run.val, "loss"), _TOTAL)
    losses = [
        markup.plot(
            "Training loss",
            "and its terms before they are weighted",
            draw_curves("training-loss", [curve for _, curve in terms], "step", log=True),
        ),
        markup.plot(
            "Validation loss",
            _best(run) if watched_by(run) == "loss" else "",
            draw_curves("validation-loss", [total], "step", log=True),
        ),
    ]
    return [
        markup.legend([(name, curve.style) for name, curve in terms]),
        f'<div class="plots two">{"".join(losses)}</div>',
    ]


def _rate_plots(run: Run) -> str:
    """Learning rate and gradient norm over steps."""
    step, small = column(run.train, "step"), (5.6, 1.9)
    rate, norm = (Curve(step, column(run.train, key), _TOTAL) for key in ("lr", "grad_norm"))
    plots = [
        markup.plot("Learning rate", "", draw_curves("learning-rate", [rate], "step", size=small)),
        markup.plot("Gradient norm", "", draw_curves("gradient-norm", [norm], "step", log=True, size=small)),
    ]
    return f'<div class="plots two">{"".join(plots)}</div>'


def _error_plots(run: Run) -> list[str]:
    """Validation errors of every task over steps."""
    tasks = [(task, style_of(place)) for place, task in enumerate(run.tasks)]
    forces = _validation_curves(run, tasks, "forces_mae", "forces_mae_zero")
    errors = [
        markup.plot("Validation force MAE", "meV/Å; dotted: of zero forces", forces),
        markup.plot("Validation energy MAE", "meV/atom", _validation_curves(run, tasks, "energy_mae")),
    ]
    for name, title, unit in (("stress_mae", "stress", "meV/Å³"), ("magmoms_mae", "magnetic moment", "mμB")):
        drawing = _validation_curves(run, tasks, name)
        if drawing:
            errors.append(markup.plot(f"Validation {title} MAE", unit, drawing))
    return [markup.legend(tasks), f'<div class="plots two">{"".join(errors)}</div>']


def parity(run: Run) -> Section:
    """Predictions beside labels, and the errors as histograms, by task."""
    body = []
    for place, task in enumerate(run.tasks):
        plots = []
        for label, scale, unit, error_unit in _PARITY:
            pairs = run.parity.get((label, task))
            if pairs is not None and len(pairs):
                drawing = draw_parity(f"parity-{label}-{place}", pairs, scale, unit)
                plots.append(markup.plot(label.capitalize(), _spread(pairs, error_unit), drawing))
        if plots:
            body.append(f'<h3>{escape(task)}</h3><div class="plots three">{"".join(plots)}</div>')
    if not body:
        return Section("parity", "Parity", markup.none("There are no predictions beside labels to show."))
    body.insert(0, '<p class="soft">Bright points lie where many are. Energies are without those of the reference '
                   "atoms; forces and stress are single components.</p>")  # fmt: skip
    return Section("parity", "Parity", "\n".join(body))


def elements(run: Run) -> Section:
    """Force errors by element."""
    if not run.elements:
        return Section("elements", "Elements", markup.none("There are no errors by element."))
    values, titles, rows = {}, {}, []
    for symbol in sorted(run.elements, key=lambda symbol: (ATOMIC_NUMBERS.get(symbol, len(SYMBOLS) + 1), symbol)):
        error, atoms = as_number(run.elements[symbol].get("forces_mae")), run.elements[symbol].get("atoms")
        values[symbol] = error
        titles[symbol] = f"{symbol}: force MAE {milli(error)} meV/Å over {whole(atoms)} atoms"
        rows.append([symbol, whole(atoms), milli(error)])
    body = [
        draw_table(values, titles, milli, "force MAE, meV/Å"),
        markup.fold("As a table", f"<div>{markup.table(['element', 'atoms', 'force MAE meV/Å'], rows)}</div>"),
    ]
    return Section("elements", "Elements", "\n".join(body))


def experts(run: Run) -> Section:
    """What the experts do, layer by layer."""
    if not run.layers:
        return Section(
            "experts", "Experts", markup.none("There is no map of experts: no layer has any, or none was written.")
        )
    figures = [
        markup.plot(layer.name, "", draw_experts(f"experts-{place}", layer), expert_map_width(layer))
        for place, layer in enumerate(run.layers)
    ]
    tables = [_expert_table(layer) for layer in run.layers[:_LAYERS_SHOWN]]
    body = [
        '<p class="soft">Colours: how much an expert (row) counts for an element (column), pale for little, dark for '
        "much, grey for nothing. Bars: the share of the rows that an expert computes; dashed: an even share. "
        "Evenness is an entropy over its highest value. As diverse as: so many experts, all used alike.</p>",
        markup.table(
            [
                "layer",
                "experts",
                "experts\nper element",
                "unused",
                "busiest /\neven share",
                "evenness\nof load",
                "evenness\nof gates",
                "as diverse as",
            ],
            [_balance(layer) for layer in run.layers],
        ),
        f'<div class="plots flow">{"".join(figures[:_LAYERS_SHOWN])}</div>',
    ]
    if len(figures) > _LAYERS_SHOWN:
        rest = f'<div class="plots flow">{"".join(figures[_LAYERS_SHOWN:])}</div>'
        body.append(markup.fold(f"{len(figures) - _LAYERS_SHOWN} more layers", rest))
    body.append(markup.fold("On the periodic table: the expert that counts most for each element", "".join(tables)))
    return Section("experts", "Experts", "\n".join(body))


def _expert_table(layer: ExpertLayer) -> str:
    """The periodic table with the expert that counts most for each element, and the next where a mouse rests."""
    first = {symbol: int(weights.argmax()) for symbol, weights in zip(layer.symbols, layer.weights, strict=True)}
    titles = {
        symbol: f"{symbol}: " + ", ".join(f"expert {e} {100 * weights[e]:.0f} %" for e in np.argsort(-weights)[:4])
        for symbol, weights in zip(layer.symbols, layer.weights, strict=True)
    }
    return f"<h3>{escape(layer.name)}</h3>{draw_groups(first, titles)}"


def data(run: Run) -> Section:
    """Frames, labels and elements by task."""
    if not run.coverage:
        return Section("data", "Data", markup.none("There is no account of the data."))
    labels = [term for term in _TERMS if any(term in row for row in run.coverage.values())]
    rows = []
    for task, row in run.coverage.items():
        symbols = _symbols(row)
        counts = [whole(row.get(key)) for key in ("train", "val", *labels)]
        rows.append([task, *counts, f"{len(symbols)}: {' '.join(symbols)}"])
    header = ["task", "training", "validation", *(f"with\n{label}" for label in labels), "elements"]
    body = [markup.table(header, rows, words=(0, len(header) - 1))]
    if run.data.get("fingerprint"):
        body.append(f'<p class="soft">Fingerprint of the data: {escape(str(run.data["fingerprint"]))}</p>')
    return Section("data", "Data", "\n".join(body))


def configuration(run: Run) -> Section:
    """The configuration as it was resolved."""
    if not run.config.strip():
        return Section("configuration", "Configuration", markup.none("There is no configuration."))
    return Section(
        "configuration", "Configuration", markup.fold("config.yaml", f"<pre>{escape(run.config.rstrip())}</pre>")
    )


def environment(run: Run) -> Section:
    """Versions and the machine."""
    if not run.environment:
        return Section("environment", "Environment", markup.none("The environment was not written down."))
    rows = [(name, MISSING if value is None else str(value)) for name, value in run.environment.items()]
    return Section("environment", "Environment", markup.pairs(rows))


def _headlines(run: Run) -> list[tuple[str, str, str]]:
    lines = [*run.train, *run.val]
    found = []
    if lines:
        epoch = as_number(run.train[-1].get("epoch")) if run.train else np.nan
        step = column(lines, "step").max()
        found.append(("steps", whole(step), "" if np.isnan(epoch) else f"epoch {epoch:.4g}"))
        seconds = column(lines, "seconds")
        found.append(("time", duration(np.nanmax(seconds)) if np.isfinite(seconds).any() else MISSING, "of training"))
    if _best(run):
        value, _, where = _best(run).partition(" ")
        found.append((f"best validation {watched_by(run).replace('_', ' ')}", value, where))
    if run.train:
        speeds = [three_figures(median_of(column(run.train, f"{things}_per_s"))) for things in ("structures", "atoms")]
        found.append(("structures per second", speeds[0], f"{speeds[1]} atoms/s"))
        memory = column(run.train, "memory_mb")
        if np.isfinite(memory).any():
            most = float(np.nanmax(memory))
            found.append(("memory", f"{most / 1024:.1f} GB" if most >= 1024 else f"{most:.0f} MB", "at most"))
    if run.coverage:
        symbols = {symbol for row in run.coverage.values() for symbol in _symbols(row)}
        tasks = f"{len(run.coverage)} task{'s' * (len(run.coverage) != 1)}"
        structures = whole(np.nansum(column(run.coverage.values(), "train")))
        found.append(("training structures", structures, f"{tasks}, {len(symbols)} elements"))
    return found


def watched_by(run: Run) -> str:
    """What decides which model is the best: the loss, or what `watch.metric` named last."""
    watched = run.val[-1].get("watch") if run.val else None
    metric = watched.get("metric") if isinstance(watched, Mapping) else None
    return metric if isinstance(metric, str) and metric else "loss"


def _best(run: Run) -> str:
    """The lowest value of what is watched and where, or nothing."""
    values = column(run.val, *(("loss",) if watched_by(run) == "loss" else ("watch", "value")))
    if not np.isfinite(values).any():
        return ""
    place = int(np.nanargmin(values))
    return f"{three_figures(values[place])} at step {whole(run.val[place]['step'])}"


def _validation_curves(run: Run, tasks: Sequence[tuple[str, Style]], name: str, baseline: str | None = None) -> str:
    step = column(run.val, "step")
    curves = []
    for task, style in tasks:
        trivial = column(run.val, "tasks", task, baseline) * 1000 if baseline else np.empty(0)
        known = trivial[np.isfinite(trivial)]
        values = 1000 * column(run.val, "tasks", task, name)
        curves.append(Curve(step, values, style, float(known[-1]) if len(known) else np.nan))
    return draw_curves(f"validation-{name.replace('_', '-')}", curves, "step", log=True)


def _spread(pairs: FloatArray, unit: str) -> str:
    errors = 1000 * (pairs[:, 1] - pairs[:, 0])
    unbroken = unit.replace("/", "/\u2060")
    outside = 100 * float((np.abs(errors) > histogram_reach(errors)).mean())
    parts = [
        f"{len(pairs):,} points",
        f"MAE {three_figures(np.abs(errors).mean())}, RMSE {three_figures(np.sqrt((errors**2).mean()))} {unbroken}",
    ]
    return "; ".join(parts + [f"{outside:.1f} % beyond the histogram"] * (outside > 0))


def _balance(layer: ExpertLayer) -> list[str]:
    """Name, number of experts, how many an element uses, how many nobody uses, and how even load and gates are."""
    said = {key: as_number(layer.statistics.get(key)) for key in _EXPERT_STATISTICS}

    def shown(key: str, unit: str, factor: float = 1.0) -> str:
        return MISSING if np.isnan(said[key]) else f"{three_figures(factor * said[key])}{unit}"

    return [
        layer.name, str(len(layer.load)), three_figures(float((layer.weights > 0).sum(axis=1).mean())),
        whole(said["dead"]), shown("max_over_mean", " ×"), shown("load_entropy", " %", 100),
        shown("gate_entropy", " %", 100), shown("effective_experts", ""),
    ]  # fmt: skip


def _symbols(row: Mapping[str, Any]) -> list[str]:
    """The elements of a task."""
    symbols = row.get("elements")
    return [str(symbol) for symbol in symbols] if isinstance(symbols, list) else []
