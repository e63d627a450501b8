"""What the report says of physics, where there is a physics card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from janus_train.report import markup
from janus_train.report.markup import Section
from janus_train.report.plots import Curve, draw_curves, style_of
from janus_train.report.quantities import MISSING, as_number, duration, three_figures, whole
from janus_train.report.read import FloatArray, Run, inner_mappings

# Energies of dimers are drawn up to this many times the deepest well, and at least up to this many eV.
_WELLS, _WALL = 2.0, 2.0

_INTRODUCTION = (
    "Elements and structures are those of the data; crystals of one element start from their standard form, all others "
    "from a frame, and all are relaxed. Elastic constants let the atoms inside the cell follow. Imaginary frequencies "
    "are shown as negative. The runs at constant energy start from the relaxed structure at 600 K."
)


def physics_sections(run: Run) -> list[Section]:
    """The section about physics, or none."""
    tasks = inner_mappings(run.physics.get("tasks"))
    if not tasks:
        return []
    notices = [str(notice) for notice in _listed(run.physics.get("notices"))]
    body = [f'<p class="soft">{_INTRODUCTION}</p>', markup.remarks("Left out", notices)]
    for place, (task, found) in enumerate(tasks.items()):
        dimers, prototypes = _mappings(found.get("dimers")), _mappings(found.get("prototypes"))
        body += [
            f"<h3>{escape(task)}</h3>",
            markup.remarks("Attention", _oddities(dimers, prototypes)),
            _table(prototypes),
            *_dimer_plots(place, dimers),
            *_prototype_plots(place, prototypes),
        ]
    seconds = run.physics.get("seconds")
    body.append(f'<p class="soft">The card took {duration(seconds)}.</p>')
    return [Section("physics", "Physics", "\n".join(body))]


def _table(prototypes: Sequence[Mapping[str, Any]]) -> str:
    if not prototypes:
        return markup.none("No prototype was found in the data.")
    header = [
        "prototype", "kind", "atoms", "V0\nÅ³/atom", "B0\nGPa", "B0'", "C11\nGPa", "C12\nGPa", "C44\nGPa", "stable",
        "lowest\nphonon\nTHz", "energy drift\nmeV/atom/ps",
    ]  # fmt: skip
    rows = []
    for row in prototypes:
        state, elastic = _part(row, "equation_of_state"), _part(row, "elasticity")
        cubic = _listed(elastic.get("cubic")) or [None] * 3
        stable = {True: "yes", False: "no"}.get(elastic.get("stable", "") is True, MISSING) if elastic else MISSING
        rows.append(
            [
                str(row.get("name")),
                str(row.get("kind")),
                whole(row.get("atoms")),
                *(three_figures(state.get(name)) for name in ("volume", "bulk_modulus", "derivative")),
                *(three_figures(constant) for constant in (cubic + [None] * 3)[:3]),
                stable,
                three_figures(_part(row, "phonons").get("lowest")),
                three_figures(_part(row, "dynamics").get("drift")),
            ]
        )
    return markup.table(header, rows, words=(0, 1))


def _oddities(dimers: Sequence[Mapping[str, Any]], prototypes: Sequence[Mapping[str, Any]]) -> list[str]:
    holes = [
        f"{_pair(dimer)} (below {three_figures(dimer.get('hole_below'))} Å)"
        for dimer in dimers
        if np.isfinite(as_number(dimer.get("hole_below")))
    ]
    found = []
    if holes:
        found.append(
            "these atoms attract each other where all atoms repel, so a hot run can let them fall into each other: "
            + ", ".join(holes)
        )
    for row in prototypes:
        for name, part in inner_mappings(dict(row)).items():
            if "failed" in part:
                found.append(f"{row.get('name')}: {name.replace('_', ' ')} failed: {part['failed']}")
            elif name == "relaxation" and part.get("converged") is False:
                found.append(f"{row.get('name')}: the relaxation had not ended after {whole(part.get('steps'))} steps")
    return found


def _dimer_plots(place: int, dimers: Sequence[Mapping[str, Any]]) -> list[str]:
    drawn = [(dimer, _numbers(dimer, "distances"), _numbers(dimer, "energies")) for dimer in dimers]
    drawn = [(dimer, x, y) for dimer, x, y in drawn if len(x) == len(y) > 0]
    if not drawn:
        return []
    depths = [float(-np.nanmin(y)) for _, _, y in drawn if np.isfinite(y).any()]
    wall = max(_WALL, _WELLS * max(depths, default=0.0))
    energies, forces = [], []
    for number, (dimer, x, y) in enumerate(drawn):
        style, force = style_of(number), _numbers(dimer, "forces")
        energies.append(Curve(x, np.where(y <= wall, y, np.nan), style))
        if len(force) == len(x):
            forces.append(Curve(x, np.where(np.abs(force) <= 5 * wall, force, np.nan), style))
    plots = [
        markup.plot("Dimers: energy", "eV, relative to far apart", draw_curves(f"dimers-{place}", energies, "Å")),
        markup.plot("Dimers: force", "eV/Å, positive pushes apart", draw_curves(f"dimer-forces-{place}", forces, "Å")),
    ]
    rows = [
        [
            _pair(dimer),
            three_figures(dimer.get("bond_length")),
            three_figures(dimer.get("depth")),
            three_figures(dimer.get("hole_below")),
            whole(dimer.get("turns")),
            three_figures(dimer.get("tortuosity")),
        ]
        for dimer, _, _ in drawn
    ]
    header = ["dimer", "bond\nÅ", "depth\neV", "hole below\nÅ", "turns of\nthe force", "tortuosity"]
    return [
        markup.legend([(_pair(dimer), style_of(number)) for number, (dimer, _, _) in enumerate(drawn)]),
        f'<div class="plots two">{"".join(plots)}</div>',
        markup.fold("Dimers as a table", f"<div>{markup.table(header, rows)}</div>"),
    ]


def _prototype_plots(place: int, prototypes: Sequence[Mapping[str, Any]]) -> list[str]:
    plots, states, runs = [], [], []
    for number, row in enumerate(prototypes):
        name, style = str(row.get("name")), style_of(number)
        state, bands, motion = (_part(row, part) for part in ("equation_of_state", "phonons", "dynamics"))
        volumes, energies = _numbers(state, "volumes"), _numbers(state, "energies")
        if len(volumes) == len(energies) > 0:
            relative = volumes / as_number(state.get("volume")), 1000 * (energies - as_number(state.get("energy")))
            states.append((name, Curve(*relative, style)))
        times, drifts = _numbers(motion, "times"), _numbers(motion, "energies")
        if len(times) == len(drifts) > 0:
            runs.append((name, Curve(times, drifts, style)))
        along, frequencies = _numbers(bands, "along"), _matrix(bands.get("frequencies"))
        if len(along) == len(frequencies) > 0:
            curves = [Curve(along, mode, style_of(0)) for mode in frequencies.T]
            path = " ".join("Γ" if label == "G" else str(label) for label in _listed(bands.get("labels")))
            drawing = draw_curves(f"phonons-{place}-{number}", curves, "wave vector, 1/Å")
            plots.append(markup.plot(f"{name}: phonons", f"THz; {path}", drawing))
    if states:
        drawing = draw_curves(f"states-{place}", [curve for _, curve in states], "V / V0")
        plots.insert(0, _with_legend("Energy over volume", "meV/atom above the lowest", states, drawing))
    if runs:
        drawing = draw_curves(f"dynamics-{place}", [curve for _, curve in runs], "ps")
        plots.append(_with_legend("Energy at constant energy", "meV/atom from the start", runs, drawing))
    return [f'<div class="plots two">{"".join(plots)}</div>'] if plots else []


def _with_legend(title: str, about: str, curves: Sequence[tuple[str, Curve]], drawing: str) -> str:
    names = markup.legend([(name, curve.style) for name, curve in curves])
    return f"<div>{markup.plot(title, about, drawing)}{names}</div>"


def _part(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = row.get(name)
    return value if isinstance(value, dict) and "failed" not in value else {}


def _pair(dimer: Mapping[str, Any]) -> str:
    return "-".join(str(symbol) for symbol in _listed(dimer.get("symbols"))) or MISSING


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in _listed(value) if isinstance(entry, dict)]


def _numbers(part: Mapping[str, Any], name: str) -> FloatArray:
    return np.array([as_number(value) for value in _listed(part.get(name))], dtype=np.float64)


def _matrix(value: Any) -> FloatArray:
    rows = [[as_number(entry) for entry in _listed(row)] for row in _listed(value)]
    if len({len(row) for row in rows}) != 1:
        return np.empty((0, 0))
    return np.array(rows, dtype=np.float64)
