"""What a person sees while a run goes on: a progress bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from janus_train.benchmarking import Judgement

# Seconds between lines where there is no terminal.
_LINE_EVERY = 5.0


class Display(Protocol):
    """Shows how a run gets on. Used as a context."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def step(self, step: int, loss: float, structures_per_s: float) -> None:
        """A step is done."""
        ...

    def validated(self, value: float) -> None:
        """A validation is done, of which `watch.metric` is this."""
        ...

    def say(self, text: str) -> None:
        """A line for the person."""
        ...


class Silence:
    """Says nothing: what all ranks but the first do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, step: int, loss: float, structures_per_s: float) -> None:
        """Nothing."""

    def validated(self, value: float) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


class Lines:
    """A line every few seconds, for logs.

    Args:
        max_steps: steps of the whole run.
        first_step: where this start begins.
    """

    def __init__(self, max_steps: int, first_step: int) -> None:
        self.max_steps, self.first_step = max_steps, first_step
        self._began = self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, step: int, loss: float, structures_per_s: float) -> None:
        """Prints if the last line is some seconds old."""
        now = time.monotonic()
        if now - self._last < _LINE_EVERY and step < self.max_steps:
            return
        self._last = now
        left = (now - self._began) / max(step - self.first_step, 1) * (self.max_steps - step)
        self.say(
            f"step {step}/{self.max_steps}  loss {loss:.4f}  {structures_per_s:.1f} structures/s  {_clock(left)} left"
        )

    def validated(self, value: float) -> None:
        """Nothing: there is a line about it anyway."""

    def say(self, text: str) -> None:
        """Prints the text at once, if there is room where it goes: a full disk is no reason to stop a training."""
        with suppress(OSError):
            print(text, flush=True)


class Bar:
    """A progress bar with step, loss, structures/s, time left and the last validation, for terminals."""

    def __init__(self, max_steps: int, first_step: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress: RichProgress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),  # what the numbers leave
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]} structures/s"),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[validation]}"),
            expand=True,
        )
        self._task = self._progress.add_task(
            "train", total=max_steps, completed=first_step, loss="–", speed="–", validation=""
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, step: int, loss: float, structures_per_s: float) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=step, loss=f"{loss:.4f}", speed=f"{structures_per_s:.1f}")

    def validated(self, value: float) -> None:
        """Shows it at the end of the bar."""
        self._progress.update(self._task, validation=f"val {value:.3g}")

    def say(self, text: str) -> None:
        """Prints above the bar."""
        self._progress.console.print(text, highlight=False, markup=False)


def make_display(rank: int, max_steps: int, first_step: int) -> Display:
    """A bar where someone watches, lines where a file does, nothing on ranks that are not to talk."""
    if rank != 0:
        return Silence()
    return Bar(max_steps, first_step) if sys.stdout.isatty() else Lines(max_steps, first_step)


def errors_table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """The errors of every task as a table of plain text."""
    rows = [["task", "structures", "E MAE meV/atom", "F MAE meV/Å", "zero forces", "ratio", "stress MAE meV/Å³"]]
    for task, errors in tasks.items():
        forces, zero = errors["forces_mae"], errors["forces_mae_zero"]
        ratio = f"{zero / forces:.1f} ×" if forces and zero else "–"
        energy = _milli(errors["energy_mae"])
        stress = _milli(errors["stress_mae"])
        rows.append([task, str(errors["structures"]), energy, _milli(forces), _milli(zero), ratio, stress])
    return "\n".join(_ruled(rows))


def groups_table(groups: Mapping[str, Mapping[str, Any]], most: int = 20) -> str:
    """The errors of the groups with the largest force errors (energy errors, where no forces are known).

    Beside the mean absolute error of energies stands their mean error: where the two are alike, all energies of a group
    are shifted together, as when a model does not know what a vacancy or a surface costs.
    """

    def error(name: str) -> float:
        errors = groups[name]
        return next((errors[key] for key in ("forces_mae", "energy_mae") if errors[key] is not None), 0.0)

    worst = sorted(groups, key=error, reverse=True)[:most]
    rows = [["group", "structures", "E MAE meV/atom", "E shift", "F MAE meV/Å", "zero forces", "stress MAE meV/Å³"]]
    for name in worst:
        errors = groups[name]
        values = [_milli(errors[key]) for key in ("energy_mae", "energy_shift", "forces_mae", "forces_mae_zero")]
        rows.append([name, str(errors["structures"]), *values, _milli(errors["stress_mae"])])
    table = "\n".join(_ruled(rows))
    return f"{table}\n{len(groups) - most} more groups have smaller errors" if len(groups) > most else table


def elements_table(elements: Mapping[str, Mapping[str, Any]]) -> str:
    """The force errors of every element as a table of plain text."""
    rows = [[symbol, f"{row['atoms']:,}", _milli(row["forces_mae"])] for symbol, row in elements.items()]
    return "\n".join(_ruled([["element", "atoms", "F MAE meV/Å"], *rows]))


def coverage_table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """How many frames of each task there are, and how many have which label, as a table of plain text."""
    header = ["task", "train", "val", "energy", "forces", "stress", "magmoms", "elements"]
    rows = [header] + [
        [task, *(str(row[name]) for name in header[1:-1]), f"{len(row['elements'])}: {_shorten(row['elements'])}"]
        for task, row in tasks.items()
    ]
    return "\n".join(_aligned(rows))


def experts_table(layers: Mapping[str, Mapping[str, float]]) -> str:
    """How the experts of every layer are used, as a table of plain text."""
    names = ["layer", "busiest / even", "evenness of load", "unused", "evenness of gates", "as diverse as"]
    keys = ("max_over_mean", "load_entropy", "dead", "gate_entropy", "effective_experts")
    return "\n".join(
        _aligned([names, *([layer, *(f"{row[key]:.4g}" for key in keys)] for layer, row in layers.items())])
    )


def physics_table(card: Mapping[str, Any]) -> str:
    """The physics card as a table of plain text: a line a prototype, then what is odd about dimers, then notices."""
    names = ["prototype", "V0 Å³/atom", "B0 GPa", "C11", "C12", "C44", "lowest THz", "drift meV/atom/ps"]
    rows, oddities = [names], []
    for task, found in card["tasks"].items():
        for row in found["prototypes"]:
            state, elastic = row.get("equation_of_state", {}), row.get("elasticity", {})
            constants = elastic.get("cubic") or [None] * 3
            values = [state.get("volume"), state.get("bulk_modulus"), *constants]
            values += [row.get("phonons", {}).get("lowest"), row.get("dynamics", {}).get("drift")]
            rows.append([f"{task}: {row['name']}", *("–" if value is None else f"{value:.4g}" for value in values)])
        holes = [
            f"{'-'.join(dimer['symbols'])} below {dimer['hole_below']:.2f} Å"
            for dimer in found["dimers"]
            if dimer.get("hole_below") is not None
        ]
        if holes:
            oddities.append(f"{task}: atoms that should repel attract each other: {', '.join(holes)}")
        failed = [
            f"{row['name']}: {name.replace('_', ' ')}: {value['failed']}"
            for row in found["prototypes"]
            for name, value in row.items()
            if isinstance(value, dict) and "failed" in value
        ]
        oddities += [f"{task}: {text}" for text in failed]
    notices = [*oddities, *(f"notice: {notice}" for notice in card["notices"])]
    return "\n".join([*_ruled(rows), *notices])


def benchmark_table(judgement: Judgement) -> str:
    """What a benchmark says, as plain text: a line for each number, then a table of its parts, then notices."""
    lines = [f"{judgement.benchmark}, {judgement.units}"]
    lines += _aligned([[name, _shown(value)] for name, value in _flat("", judgement.summary)])
    if judgement.rows:
        names = list(judgement.rows[0])
        lines += ["", *_ruled([names, *([_shown(row[name]) for name in names] for row in judgement.rows)])]
    return "\n".join([*lines, *(f"notice: {notice}" for notice in judgement.notices)])


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}, ", value)
        else:
            yield prefix + name, value


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _aligned(rows: list[list[str]]) -> list[str]:
    """Cells in columns: words to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column == 0 or rows[0][column] == "elements" else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _ruled(rows: list[list[str]]) -> list[str]:
    """The same with a rule under the first row, which names the columns."""
    header, *lines = _aligned(rows)
    return [header, "─" * len(header), *lines]


def _milli(value: float | None) -> str:
    return "–" if value is None else f"{1000 * value:.1f}"


def _shorten(symbols: list[str], most: int = 12) -> str:
    return " ".join(symbols[:most]) + (" …" if len(symbols) > most else "")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
