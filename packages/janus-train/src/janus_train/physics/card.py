"""The physics card of a model: dimers of each task, and what a few prototypes are like near their equilibrium."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from janus_train.data.frame import Frame
from janus_train.physics.dimer import dimer_curve, dimer_distances
from janus_train.physics.dynamics import constant_energy_run
from janus_train.physics.elasticity import elastic_constants
from janus_train.physics.equation_of_state import equation_of_state
from janus_train.physics.phonons import phonon_bands
from janus_train.physics.prototypes import choose_pairs, choose_prototypes, time_step
from janus_train.physics.relax import relax

# Crystals with more atoms in their cell have no elastic constants and phonons on the card: they take too long.
_MOST_ATOMS = 20

# Dynamics of crystals run in cells of at least so many atoms.
_FEWEST_MOVING = 16

NO_PHONOPY = "phonons are left out: phonopy is not installed (pip install 'janus-train[phonons]')"


@dataclass(frozen=True, eq=False)
class Subject:
    """What of a model is looked at, for one task.

    Attributes:
        task: its name.
        calculator: an ASE calculator of the model for this task.
        structures: prototypes, not relaxed.
        pairs: elements of the dimers.
        spins: whether the task has spins, so that a dimer with an odd number of electrons needs one.
    """

    task: str
    calculator: Any
    structures: list[Atoms]
    pairs: list[tuple[str, str]]
    spins: bool


@dataclass(frozen=True)
class CardSettings:
    """How much is done.

    Attributes:
        structures: prototypes of a task.
        pairs: dimers of a task.
        picoseconds: length of the run at constant energy, one for each task; none where 0.
        reach: the longest distance of a dimer, Å: where the potential ends, or a little beyond.
        phonons: whether to compute them where phonopy is installed.
    """

    structures: int = 3
    pairs: int = 8
    picoseconds: float = 1.0
    reach: float = 6.0
    phonons: bool = True


def subject_of_frames(task: str, calculator: Any, frames: Sequence[Frame], settings: CardSettings) -> Subject:
    """The subject that labelled frames of a task suggest."""
    return Subject(
        task,
        calculator,
        choose_prototypes(frames, settings.structures),
        choose_pairs(frames, settings.pairs),
        any(frame.structure.spin != 1 for frame in frames),
    )


def physics_card(
    subjects: Sequence[Subject], settings: CardSettings, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """The card as plain values for JSON: `tasks`, `notices` and `seconds`.

    A quantity that a structure does not have is missing; one that could not be computed is `{"failed": why}`, and the
    rest goes on.
    """
    began = time.monotonic()
    phonons = settings.phonons and find_spec("phonopy") is not None
    tasks = {}
    for subject in subjects:
        dimers = [_tried(partial(_dimer, subject, pair, settings.reach)) for pair in subject.pairs]
        say(f"{subject.task}: {len(dimers)} dimers")
        prototypes: list[dict[str, Any]] = []
        seconds = settings.picoseconds
        for atoms in subject.structures:
            row = _prototype(subject, atoms, seconds, phonons)
            # One run at constant energy for a task: they are what takes longest.
            seconds = 0.0 if "dynamics" in row else seconds
            prototypes.append(row)
            say(f"{subject.task}: {row['name']}: {', '.join(_quantities(row))}")
        tasks[subject.task] = {"dimers": dimers, "prototypes": prototypes}
    notices = [NO_PHONOPY] if settings.phonons and not phonons else []
    return {"tasks": tasks, "notices": notices, "seconds": round(time.monotonic() - began, 1)}


def _dimer(subject: Subject, pair: tuple[str, str], reach: float) -> Any:
    odd = sum(atomic_numbers[symbol] for symbol in pair) % 2
    info = {"spin": 2} if subject.spins and odd else {}
    return dimer_curve(subject.calculator, pair, dimer_distances(pair, reach), info)


def _prototype(subject: Subject, atoms: Atoms, picoseconds: float, phonons: bool) -> dict[str, Any]:
    calculator = subject.calculator
    kind = {0: "molecule", 3: "crystal"}.get(int(atoms.pbc.sum()), "surface")
    row: dict[str, Any] = {"name": atoms.get_chemical_formula(), "kind": kind, "atoms": len(atoms)}
    try:
        relaxation = relax(calculator, atoms)
    except Exception as error:  # noqa: BLE001  a model may do anything, and the rest of the card is wanted
        return row | {"relaxation": _failure(error)}
    relaxed = relaxation.atoms
    row["relaxation"] = _plain(relaxation)
    if kind == "crystal":
        row["cell"] = _rounded(relaxed.cell.cellpar())
        row["equation_of_state"] = _tried(partial(equation_of_state, calculator, relaxed))
        if len(relaxed) <= _MOST_ATOMS:
            row["elasticity"] = _tried(partial(elastic_constants, calculator, relaxed))
            if phonons:
                row["phonons"] = _tried(partial(phonon_bands, calculator, relaxed))
    if picoseconds > 0:
        moving = _repeated(relaxed)
        row["dynamics"] = _tried(partial(constant_energy_run, calculator, moving, picoseconds, time_step(moving)))
    return row


def _repeated(atoms: Atoms) -> Atoms:
    """The structure, or a supercell of it with enough atoms to move, grown along its shortest sides."""
    repeats = np.ones(3, dtype=int)
    if atoms.pbc.all():
        while len(atoms) * repeats.prod() < _FEWEST_MOVING:
            repeats[np.argmin(repeats * atoms.cell.lengths())] += 1
    return atoms.repeat(repeats)


def _quantities(row: dict[str, Any]) -> list[str]:
    return [
        name.replace("_", " ") + (" failed" if "failed" in value else "")
        for name, value in row.items()
        if isinstance(value, dict)
    ]


def _tried(quantity: Callable[[], Any]) -> dict[str, Any]:
    try:
        return _plain(quantity())
    except Exception as error:  # noqa: BLE001  one quantity that fails shall not cost the others
        return _failure(error)


def _failure(error: Exception) -> dict[str, Any]:
    expected = isinstance(error, (ValueError, RuntimeError))
    return {"failed": str(error) if expected else f"{type(error).__name__}: {error}"}


def _plain(result: Any) -> dict[str, Any]:
    """A result as plain values with six significant figures; structures are left out."""
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return {name: _rounded(value) for name, value in fields.items() if not isinstance(value, Atoms)}


def _rounded(value: Any) -> Any:
    if isinstance(value, (np.ndarray, tuple, list)):
        return [_rounded(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value
