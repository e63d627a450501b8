"""Per task: what an atom of each element costs, and how large forces are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from janus_graph import HIGHEST_ATOMIC_NUMBER
from janus_train.data.frame import Frame


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is taken off energies before a model learns the rest, in float64, the scale of that rest, and how many atoms
    each element has to learn from.

    Attributes:
        references: energy of each element (column = atomic number) in each task, eV; zero where the data are silent.
        scales: eV that a model's unit output stands for in each task: the root mean square force component times 1 Å.
        residuals: root mean square of what the references leave of the energies, eV/atom.
        atoms: atoms of each element (place = atomic number), over all tasks.
        warnings: what a person should know about the fit.
    """

    references: Float64[np.ndarray, "tasks elements"]
    scales: Float64[np.ndarray, "tasks"]
    residuals: Float64[np.ndarray, "tasks"]
    atoms: Int64[np.ndarray, "elements"]
    warnings: tuple[str, ...]


def fit_statistics(frames: Sequence[Frame], tasks: Sequence[str]) -> Statistics:
    """Reference energies by least squares on energies per atom, and scales from forces, for each task; atoms."""
    references = np.zeros((len(tasks), HIGHEST_ATOMIC_NUMBER + 1))
    scales, residuals = np.ones(len(tasks)), np.zeros(len(tasks))
    warnings: list[str] = []
    for index, task in enumerate(tasks):
        own = [frame for frame in frames if frame.task == task]
        labelled = [frame for frame in own if frame.has("energy")]
        if labelled:
            references[index], residuals[index], note = _fit(labelled)
            warnings += [f"task {task}: {note}"] if note else []
        scales[index] = _force_scale(own) or max(residuals[index], 1e-2)
    return Statistics(references, scales, residuals, _atoms_of_elements(frames), tuple(warnings))


def _atoms_of_elements(frames: Sequence[Frame]) -> Int64[np.ndarray, "elements"]:
    numbers = [np.zeros(0, dtype=np.int64), *(frame.structure.atomic_numbers for frame in frames)]
    return np.bincount(np.concatenate(numbers), minlength=HIGHEST_ATOMIC_NUMBER + 1)


def _fit(frames: Sequence[Frame]) -> tuple[np.ndarray, float, str]:
    counts = np.stack(
        [np.bincount(frame.structure.atomic_numbers, minlength=HIGHEST_ATOMIC_NUMBER + 1) for frame in frames]
    )
    present = np.flatnonzero(counts.any(axis=0))
    fractions = counts[:, present] / counts.sum(axis=1, keepdims=True)
    per_atom = np.array([frame.energy for frame in frames], dtype=np.float64) / counts.sum(axis=1)
    # Elements in a fixed ratio (one molecule, one compound) leave their shares open. The smallest solution splits
    # them evenly; sums over the compositions that are there are right all the same.
    solution, _, rank, _ = np.linalg.lstsq(fractions, per_atom, rcond=1e-10)
    references = np.zeros(HIGHEST_ATOMIC_NUMBER + 1)
    references[present] = solution
    note = ""
    if rank < len(present):
        note = (
            f"the compositions fix {rank} of {len(present)} reference energies; energies between compositions that are "
            "not in the data mean nothing"
        )
    return references, float(np.sqrt(np.mean((fractions @ solution - per_atom) ** 2))), note


def _force_scale(frames: Sequence[Frame]) -> float:
    # Atoms without neighbours have no force by definition and say nothing about the scale.
    forces = [frame.forces for frame in frames if frame.forces is not None and len(frame.structure) > 1]
    if not forces:
        return 0.0
    return float(np.sqrt(np.mean(np.concatenate(forces) ** 2)))
