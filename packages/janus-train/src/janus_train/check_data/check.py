"""The report on a data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from janus_graph import HIGHEST_ATOMIC_NUMBER
from janus_train.check_data.looks import FrameLooks, energy_outliers, rounded_to_float32
from janus_train.check_data.series import displaced_pairs, strained_pairs
from janus_train.check_data.verdicts import Verdict, energy_jumps, force_verdict, stress_verdict
from janus_train.config import load_config
from janus_train.data.chosen import column_parts
from janus_train.data.duplicates import Repeats, find_repeats
from janus_train.data.frame import Frame
from janus_train.data.load import DataSet, coverage, data_fingerprint, load_data, split_warnings
from janus_train.data.statistics import Statistics, fit_statistics
from janus_train.display import coverage_table

# At most so many frames are named in the text for each kind of problem, and in JSON.
_NAMED, _LISTED = 5, 1000
# So many frames are read, in runs of so many that follow each other; columns are of all.
_READ, _RUN = 200_000, 1000


@dataclass(frozen=True)
class DataReport:
    """What was found: for people, and for programs.

    Attributes:
        text: the report.
        content: the same, and all frames that are named.
        suspicious: whether anything should be looked at before training.
    """

    text: str
    content: dict[str, Any]
    suspicious: bool


@dataclass
class _Findings:
    """Frames by what is suspicious about them, or worth knowing."""

    suspicions: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)


def check(config_path: Path | None, overrides: Sequence[str]) -> DataReport:
    """Reads the data of a configuration as training would, and reports on them.

    Of sets of more than 200,000 frames so many are read, in runs of a thousand; what the columns of a store tell is
    of all frames.

    Raises:
        UserError: whatever would stop training.
    """
    config = load_config(config_path, overrides)
    data = load_data(config)
    statistics = fit_statistics(data.train, data.tasks, config.references)
    found = _Findings()
    looks, verdicts = _read_through(data, found)
    _repeats(data, found)
    _energies(data, statistics, found)
    for problem, origins in looks.frames.items():
        if origins:
            to = found.notes if "not used" in problem else found.suspicions
            to[f"{len(origins)} frame(s) with {problem}"] = origins
    found.suspicions.update(looks.stress_suspicions())
    found.notes.update({warning: [] for warning in (*statistics.warnings, *split_warnings(data, config.data))})
    return _report(data, statistics, found, verdicts)


def _read_through(data: DataSet, found: _Findings) -> tuple[FrameLooks, dict[str, dict[str, Verdict]]]:
    """What single frames and series say, in one pass over the frames for each kind of series."""
    looks = FrameLooks()
    displaced = displaced_pairs(looks.take_in(_some(data)))
    strained = strained_pairs(_some(data))
    verdicts: dict[str, dict[str, Verdict]] = {}
    for task in data.tasks:
        own = [pair for pair in displaced if pair.task == task]
        of_task = {
            "forces": force_verdict(own),
            "stress": stress_verdict([pair for pair in strained if pair.task == task]),
        }
        verdicts[task] = {name: verdict for name, verdict in of_task.items() if verdict is not None}
        for verdict in verdicts[task].values():
            if verdict.suspicion is not None:
                what = f"task {task}, {verdict.pairs} pairs of frames of a series: {verdict.suspicion}"
                found.suspicions[what] = list(verdict.origins)
        agree = "forces" in verdicts[task] and verdicts[task]["forces"].suspicion is None
        if agree and (jumps := energy_jumps(own)):
            what = (
                f"task {task}: energies jump {len(jumps)} time(s) between frames that are near, by what no force tells"
            )
            found.suspicions[what] = jumps
    return looks, verdicts


def _some(data: DataSet) -> Iterator[Frame]:
    """Frames of training and validation; of very many, runs that are spread evenly."""
    for frames in (data.train, data.val):
        runs = range(0, len(frames), _RUN)
        step = max(1, -(-len(frames) // _READ))
        for start in runs[::step]:
            for place in range(start, min(start + _RUN, len(frames))):
                yield frames[place]


def _repeats(data: DataSet, found: _Findings) -> None:
    repeats: Repeats = find_repeats(data.train, data.val)
    if len(repeats.leaks):
        found.suspicions[f"{len(repeats.leaks)} frame(s) for validation are in training too"] = [
            f"{data.val[a].origin} = {data.train[b].origin}" for a, b in repeats.leaks[:_LISTED].tolist()
        ]
    if len(repeats.duplicates):
        found.notes[f"{len(repeats.duplicates)} training frame(s) are there again"] = [
            f"{data.train[a].origin} = {data.train[b].origin}" for a, b in repeats.duplicates[:_LISTED].tolist()
        ]


def _energies(data: DataSet, statistics: Statistics, found: _Findings) -> None:
    """Energies far from what their compositions say, and energies that lost digits."""
    for index, task in enumerate(data.tasks):
        energies, atoms, residuals = [], [], []
        for columns in column_parts(data.train):
            entry_rows = columns.row_of_entry()
            reference = np.bincount(
                entry_rows, statistics.references[index, columns.element] * columns.count, minlength=len(columns)
            )
            own = np.array([name == task for name in columns.tasks])[columns.task]
            energies.append(np.where(own, columns.energy, np.nan))
            atoms.append(columns.atoms)
            residuals.append((energies[-1] - reference) / columns.atoms)
        energy, size, residual = map(np.concatenate, (energies, atoms, residuals))
        known = np.flatnonzero(np.isfinite(residual))
        far = known[energy_outliers(residual[known])]
        if len(far):
            found.suspicions[f"task {task}: {len(far)} energies are far off what their composition says"] = [
                f"{data.train[place].origin} ({residual[place]:+.2f} eV/atom)" for place in far[:_LISTED].tolist()
            ]
        step = rounded_to_float32(energy, size)
        if step is not None:
            found.suspicions[
                f"task {task}: energies were rounded to float32 on their way here, to {1000 * step:.2g} meV/atom; read "
                "them from the source again as float64"
            ] = []


def _histogram(data: DataSet) -> dict[str, dict[str, int]]:
    """How many training frames have each element, and how many atoms of it there are."""
    from ase.data import chemical_symbols

    frames, atoms = np.zeros((2, HIGHEST_ATOMIC_NUMBER + 1), dtype=np.int64)
    for columns in column_parts(data.train):
        frames += np.bincount(columns.element, minlength=len(frames))
        atoms += np.bincount(columns.element, columns.count, minlength=len(atoms)).astype(np.int64)
    return {
        chemical_symbols[z]: {"frames": int(frames[z]), "atoms": int(atoms[z])} for z in np.flatnonzero(frames).tolist()
    }


def _references(data: DataSet, statistics: Statistics) -> dict[str, dict[str, float]]:
    from ase.data import chemical_symbols

    return {
        task: {chemical_symbols[z]: float(row[z]) for z in np.flatnonzero(row).tolist()}
        for task, row in zip(data.tasks, statistics.references, strict=True)
    }


def _report(
    data: DataSet, statistics: Statistics, found: _Findings, verdicts: Mapping[str, Mapping[str, Verdict]]
) -> DataReport:
    tasks, elements, references = coverage(data), _histogram(data), _references(data, statistics)
    residuals = dict(zip(data.tasks, statistics.residuals.tolist(), strict=True))
    fingerprint = data_fingerprint(data)
    lines = [coverage_table(tasks), "", "training frames and atoms of each element:", *_in_columns(elements), ""]
    for task, value in residuals.items():
        of_elements = ", ".join(f"{symbol} {energy:.3f}" for symbol, energy in references[task].items())
        lines.append(f"{task}: reference energies in eV: {of_elements}; they leave {1000 * value:.1f} meV/atom")
    for task, of_task in verdicts.items():
        lines += [
            f"{task}: {name} agree with energies to {100 * abs(verdict.factor - 1):.1f} % over {verdict.pairs} pairs"
            for name, verdict in of_task.items()
            if verdict.suspicion is None
        ]
    lines += [f"note: {_named(text, origins)}" for text, origins in found.notes.items()]
    lines += [f"suspicious: {_named(text, origins)}" for text, origins in found.suspicions.items()]
    lines.append(f"{len(data.train) + len(data.val)} frames, fingerprint {fingerprint[:16]}")
    content = {
        "tasks": tasks,
        "elements": elements,
        "references": references,
        "reference_residuals": residuals,
        "series": {
            task: {
                name: {"pairs": v.pairs, "factor": v.factor, "correlation": v.correlation}
                for name, v in of_task.items()
            }
            for task, of_task in verdicts.items()
        },
        "suspicions": [{"what": text, "frames": origins[:_LISTED]} for text, origins in found.suspicions.items()],
        "notes": [{"what": text, "frames": origins[:_LISTED]} for text, origins in found.notes.items()],
        "fingerprint": fingerprint,
    }
    return DataReport("\n".join(lines), content, bool(found.suspicions))


def _named(text: str, origins: Sequence[str]) -> str:
    if not origins:
        return text
    return f"{text}: {', '.join(origins[:_NAMED])}{' …' if len(origins) > _NAMED else ''}"


def _in_columns(elements: Mapping[str, Mapping[str, int]], width: int = 4) -> list[str]:
    cells = [f"{symbol:2} {row['frames']:>9} {row['atoms']:>11}" for symbol, row in elements.items()]
    return ["   ".join(cells[start : start + width]).rstrip() for start in range(0, len(cells), width)]
