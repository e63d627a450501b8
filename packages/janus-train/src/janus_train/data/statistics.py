"""Per task: what an atom of each element costs, and how large forces are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from janus_graph import HIGHEST_ATOMIC_NUMBER
from janus_train.config.references import ReferencesConfig
from janus_train.data.chosen import column_parts
from janus_train.data.columns import Columns
from janus_train.data.energy_rows import EnergyFit, EnergyRows, atoms_of_elements, element_counts
from janus_train.data.frame import Frame
from janus_train.data.reference_checks import suspicions
from janus_train.data.reference_table import table_of
from janus_train.failure import UserError

# A part of a composition in a direction that nothing fixes, above which its energy is not fixed.
_OPEN = 1e-6


@dataclass(frozen=True, eq=False)
class ReferenceFit:
    """Where the reference energies of a task come from.

    Attributes:
        source: in words, for people.
        fit: what least squares were left with, and what the data fix of it.
        one_composition: whether all frames have the same fractions of elements, so that one number is all there is.
    """

    source: str
    fit: EnergyFit
    one_composition: bool


@dataclass(frozen=True)
class Given:
    """What a task brings along.

    Attributes:
        energies: eV, by atomic number; elements that are left out are for the data to tell.
        scale: eV that a unit of the model's output means.
        source: where they come from, in words.
        kept: whether the energies are the task's own, to be kept; else they are a first guess, of another task.
    """

    energies: Mapping[int, float]
    scale: float
    source: str
    kept: bool


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is taken off energies before a model learns the rest, in float64, the scale of that rest, and how many atoms
    each element has to learn from.

    Attributes:
        references: energy of each element (column = atomic number) in each task, eV; zero where the data are silent.
        scales: eV that a model's unit output stands for in each task: the root mean square force component times 1 Å.
        residuals: root mean square of what the references leave of the energies, eV/atom.
        atoms: atoms of each element (place = atomic number), over all tasks.
        warnings: what a person should know about the references.
        fits: where the references of each task come from; None for tasks without energies.
    """

    references: Float64[np.ndarray, "tasks elements"]
    scales: Float64[np.ndarray, "tasks"]
    residuals: Float64[np.ndarray, "tasks"]
    atoms: Int64[np.ndarray, "elements"]
    warnings: tuple[str, ...]
    fits: tuple[ReferenceFit | None, ...] = ()


def fit_statistics(
    frames: Sequence[Frame],
    tasks: Sequence[str],
    config: ReferencesConfig | None = None,
    given: Mapping[str, Given] | None = None,
) -> Statistics:
    """Reference energies and scales of each task, and atoms, in one pass over what is known of the frames.

    Energies of elements are those of isolated atoms, of the user's table, or least squares on energies per atom, as the
    configuration says; elements that a table leaves out are fitted given the others. Scales come from forces. Of frames
    in stores only single atoms are read, which may be isolated, and those that a warning names.

    Args:
        frames: labelled frames of these tasks.
        tasks: names, in the order of their indices.
        config: where references come from; the defaults where None.
        given: references and scales that tasks bring along. The configuration comes first where it names the task, or
            has a table or isolated atoms for one whose references are a guess.

    Raises:
        UserError: a table that cannot be read or a task without isolated atoms of all its elements, where those are
            asked for.
    """
    config, given = config or ReferencesConfig(), given or {}
    seen = {task: _TaskSeen(frames) for task in tasks}
    start = 0
    for columns in column_parts(frames):
        for number in np.unique(columns.task).tolist():
            rows = np.flatnonzero(columns.task == number)
            seen[columns.tasks[number]].take_in(columns.take(rows), start + rows)
        start += len(columns)
    references = np.zeros((len(tasks), HIGHEST_ATOMIC_NUMBER + 1))
    scales, residuals = np.ones(len(tasks)), np.zeros(len(tasks))
    fits: list[ReferenceFit | None] = []
    warnings: list[str] = []
    for index, task in enumerate(tasks):
        own, wanted, brought = seen[task], config.of(task), given.get(task)
        fixed = brought if brought is not None and _counts(brought, task, config) else None
        found = _references(task, own, wanted, fixed)
        fits.append(found)
        if found is not None:
            references[index], residuals[index] = found.fit.energies, found.fit.residual
            warnings += [f"task {task}: {text}" for text in suspicions(own, found.fit)]
            if found.fit.open:
                warnings.append(f"task {task}: {_left_open(found)}")
        elif fixed is not None:
            references[index, list(fixed.energies)] = list(fixed.energies.values())
        scales[index] = _scale(task, own, residuals[index], brought, config)
    every = np.zeros(HIGHEST_ATOMIC_NUMBER + 1, dtype=np.int64)
    atoms = sum((own.atoms for own in seen.values()), every)
    return Statistics(references, scales, residuals, atoms, tuple(warnings), tuple(fits))


def _counts(brought: Given, task: str, config: ReferencesConfig) -> bool:
    """Whether the references that a task brings along are to be used."""
    if config.names_energies_of(task):
        return False
    return brought.kept or config.energies in ("auto", "fit")


def _scale(task: str, seen: _TaskSeen, residual: float, brought: Given | None, config: ReferencesConfig) -> float:
    """The user's word for this task first, then what is the task's own, the user's word for all, a guess, the data."""
    own = config.tasks[task].scale if task in config.tasks else None
    if own is not None:
        return own
    if brought is not None and (brought.kept or config.scale is None):
        return brought.scale
    return config.scale or seen.force_scale or max(residual, 1e-2)


def undetermined_frames(frames: Iterable[Frame], statistics: Statistics, tasks: Sequence[str]) -> tuple[str, ...]:
    """For each task with a frame among these whose reference energy nothing fixes, a warning that names the frame.

    Args:
        frames: to validate on.
        statistics: of the frames to train on.
        tasks: names, in the order of their indices.
    """
    open_ones = {
        task: found.fit.directions
        for task, found in zip(tasks, statistics.fits, strict=True)
        if found is not None and found.fit.open
    }
    warnings: dict[str, str] = {}
    for frame in frames if open_ones else ():
        if frame.task not in open_ones or frame.task in warnings:
            continue
        counts = element_counts(frame.structure.atomic_numbers)
        if np.abs(open_ones[frame.task] @ (counts / counts.sum())).max() > _OPEN:
            warnings[frame.task] = (
                f"task {frame.task}: {frame.origin} has a composition whose reference energy no training frame fixes; "
                "its energy error means nothing"
            )
    return tuple(warnings.values())


def require_determined(statistics: Statistics, tasks: Sequence[str], config: ReferencesConfig) -> None:
    """Refuses reference energies that the compositions of a task leave open, unless a ridge is asked for.

    A task whose frames all have one composition needs one number and has it: how that is shared among its elements
    makes no difference to any structure like them.

    Raises:
        UserError: names the elements and both ways out.
    """
    from ase.data import chemical_symbols

    for task, found in zip(tasks, statistics.fits, strict=True):
        if found is None or not found.fit.open or found.one_composition or config.of(task).ridge is not None:
            continue
        symbols = [chemical_symbols[z] for z in found.fit.open]
        raise UserError(
            f"task {task}: the compositions fix {found.fit.rank} of {len(found.fit.fitted)} reference energies; open "
            f"are those of {', '.join(symbols)}. Give some of them, such as isolated atoms, with "
            f"references.energies={{{symbols[0]}: ...}} in eV, or set references.ridge=1e-6 to have them as near to "
            "each other as the data allow, if the model is for compositions like these alone"
        )


class _TaskSeen:
    """What a task's frames have said so far.

    Args:
        frames: of all tasks.

    Attributes:
        bound: frames with an energy and with more than one atom, or atoms that repeat.
        alone: the other ones with an energy.
        isolated: lowest energy of a neutral atom of each element on its own, eV.
        frames_of: with an energy, in which an element is in company.
        atoms: of each element, in all frames.
    """

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.bound, self.alone = EnergyRows(), EnergyRows()
        self.isolated: dict[int, float] = {}
        self.frames_of: Int64[np.ndarray, "elements"] = np.zeros(HIGHEST_ATOMIC_NUMBER + 1, dtype=np.int64)
        self.atoms: Int64[np.ndarray, "elements"] = np.zeros(HIGHEST_ATOMIC_NUMBER + 1, dtype=np.int64)
        self._frames, self._last_of = frames, np.zeros(HIGHEST_ATOMIC_NUMBER + 1, dtype=np.int64)
        self._squares, self._components = 0.0, 0

    def take_in(self, columns: Columns, places: Int64[np.ndarray, "rows"]) -> None:
        """Frames of this task, and where they are among all."""
        self.atoms += atoms_of_elements(columns)
        # Atoms without neighbours have no force by definition and say nothing about the scale.
        pushed = columns.has("forces") & (columns.atoms > 1)
        self._squares += float(columns.force_square[pushed].sum())
        self._components += 3 * int(columns.atoms[pushed].sum(dtype=np.int64))
        labelled = columns.has("energy")
        isolated = np.zeros(len(columns), dtype=bool)
        for row in np.flatnonzero(labelled & (columns.atoms == 1)).tolist():
            frame = self._frames[int(places[row])]
            isolated[row] = not frame.structure.periodic.any()
            if isolated[row] and frame.structure.charge == 0 and frame.energy is not None:
                z = int(frame.structure.atomic_numbers[0])
                self.isolated[z] = min(frame.energy, self.isolated.get(z, np.inf))
        self.alone.add_columns(columns.take(np.flatnonzero(isolated)))
        bound = np.flatnonzero(labelled & ~isolated)
        company = columns.take(bound)
        self.bound.add_columns(company)
        self.frames_of += np.bincount(company.element, minlength=len(self.frames_of))
        self._last_of[company.element] = places[bound][company.row_of_entry()]  # of several the last is kept

    def origin_of(self, element: int) -> str:
        """Of the last frame with an energy in which an element is in company."""
        return self._frames[int(self._last_of[element])].origin

    @property
    def rows(self) -> EnergyRows:
        """Of all frames with an energy."""
        return self.bound.with_rows_of(self.alone)

    @property
    def force_scale(self) -> float:
        """Root mean square force component, eV/Å; zero without forces."""
        return float(np.sqrt(self._squares / self._components)) if self._components else 0.0


def _references(task: str, seen: _TaskSeen, config: ReferencesConfig, given: Given | None) -> ReferenceFit | None:
    rows = seen.rows
    if not rows.count:
        return None
    present = np.flatnonzero(rows.present).tolist()
    known, source = _known(task, present, seen.isolated, config, given)
    fit = rows.fit(known, config.ridge or 0.0)
    if known and fit.fitted:
        source += ", least squares for the rest"
    rank_of_all = rows.fit({}).rank if fit.open else len(present)
    return ReferenceFit(source, fit, rank_of_all == 1)


def _known(
    task: str, present: Sequence[int], isolated: Mapping[int, float], config: ReferencesConfig, given: Given | None
) -> tuple[Mapping[int, float], str]:
    """Energies of elements that are not to be fitted, and where they come from."""
    from ase.data import chemical_symbols

    if given is not None:
        return given.energies, given.source
    if isinstance(config.energies, str):
        lacking = [z for z in present if z not in isolated]
        if config.energies == "atoms" and lacking:
            raise UserError(
                f"references.energies=atoms, but no training frame of task {task} is a neutral "
                f"{chemical_symbols[lacking[0]]} atom on its own (without period and with an energy); missing are "
                f"{', '.join(chemical_symbols[z] for z in lacking)}. Add them, or set references.energies=fit"
            )
        if config.energies == "fit" or lacking:
            return {}, "least squares"
        return isolated, "isolated atoms"
    return table_of(config.energies), "table"


def _left_open(found: ReferenceFit) -> str:
    from ase.data import chemical_symbols

    symbols = ", ".join(chemical_symbols[z] for z in found.fit.open)
    what = "a composition other than that of all frames" if found.one_composition else "compositions that are not there"
    return (
        f"the compositions fix {found.fit.rank} of {len(found.fit.fitted)} reference energies; those of {symbols} are "
        f"as near to each other as can be, and energies of {what} mean nothing"
    )
