"""Errors of a potential on labelled frames, per task, element and group."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from janus_comm import Communicator
from janus_graph import HIGHEST_ATOMIC_NUMBER, Potential
from janus_train.config import LossConfig
from janus_train.data.batch import FrameSource
from janus_train.data.batching import within_budget
from janus_train.data.chosen import Column
from janus_train.data.frame import Frame

T = TypeVar("T")

_COLUMNS = (
    "energy_error", "energy_abs", "energy_square", "energy_count", "forces_abs", "forces_square", "forces_zero",
    "forces_length", "forces_atoms", "stress_abs", "stress_square", "stress_count", "magmoms_abs", "magmoms_count",
)  # fmt: skip

# Points of a parity plot of force components that are kept for a task; more would only be drawn over each other.
_PARITY_POINTS = 4000


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a potential says of one frame, in the frame's order of atoms; None where it was not asked or not defined."""

    energy: float
    forces: np.ndarray | None
    stress: np.ndarray | None
    magmoms: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Errors of a potential on a set of frames.

    Attributes:
        tasks: by task, numbers of structures and atoms, MAE and RMSE of energy (eV/atom), forces (eV/Å, by component)
            and stress (eV/Å³), `energy_shift`, the mean of predicted minus true energies (eV/atom), and
            `forces_mae_zero`, the force MAE of a model that predicts no forces.
        sums: by task and property, the sum of the errors that the loss has terms for, and how many there are.
        elements: by symbol, number of atoms with forces and their force MAE.
        parity: label and prediction side by side, by "property/task": energy per atom (without references), force
            components (a sample), stress components. Empty unless asked for.
        groups: by "task/group", for frames that belong to one, what `tasks` has by task.
    """

    tasks: dict[str, dict[str, Any]]
    sums: dict[str, dict[str, tuple[float, float]]]
    elements: dict[str, dict[str, Any]]
    parity: dict[str, np.ndarray]
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)

    def loss(self, config: LossConfig) -> float:
        """The loss that training minimises, over all frames: of mean errors, with the weights of terms and tasks.

        Whatever form it has while training, here energies count by their absolute error, and forces atom by atom.
        """
        total = 0.0
        for name, weight in config.weights.items():
            factors = {task: getattr(own, name) for task, own in config.tasks.items()}
            weighed = sum(factors.get(task, 1.0) * sums[name][0] for task, sums in self.sums.items())
            total += weight * weighed / max(sum(sums[name][1] for sums in self.sums.values()), 1)
        return total


def evaluate(
    predictions: Iterable[tuple[int, Prediction]],
    source: FrameSource,
    world: Communicator,
    references: np.ndarray | None = None,
) -> Evaluation:
    """Errors on all frames of a source. Every rank judges the predictions it has and gets the whole answer.

    The answer does not depend on the number of ranks: each frame's errors are computed by one of them, and summed in
    the order of the frames by all.

    Args:
        predictions: of what is judged, with the places of their frames; each frame's on one rank.
        source: labelled frames.
        world: all ranks.
        references: energy of each element in each task; given, the parity arrays are filled.
    """
    frames = source.frames
    errors = np.zeros((len(frames), len(_COLUMNS)))
    elements: dict[int, np.ndarray] = {}
    points: dict[int, dict[str, np.ndarray]] = {}
    for place, prediction in predictions:
        frame = frames[place]
        errors[place] = _errors(frame, prediction)
        if frame.forces is not None and prediction.forces is not None:
            elements[place] = _by_element(frame.structure.atomic_numbers, prediction.forces - frame.forces)
        if references is not None:
            points[place] = _points(frame, prediction, references)
    errors = world.sum(torch.from_numpy(errors)).numpy()
    per_element, points = _everywhere(elements, world), _everywhere(points, world)
    places = _places([frame.task for frame in frames])
    groups = _places([f"{frame.task}/{frame.group}" if frame.group else "" for frame in frames])
    return Evaluation(
        tasks={task: _table(errors, own, source.atoms) for task, own in places.items()},
        sums={task: _sums(errors[own]) for task, own in places.items()},
        elements=_by_symbol(per_element),
        parity=_parity(frames, points),
        groups={group: _table(errors, own, source.atoms) for group, own in groups.items()},
    )


def predict(
    potential: Potential, source: FrameSource, places: Sequence[int], properties: Collection[str], budget: int
) -> Iterator[tuple[int, Prediction]]:
    """Predictions for the frames at these places, computed in passes of at most `budget` edges."""
    for chunk in within_budget(places, source.edges, budget):
        batch = source.batch(chunk)
        assert batch is not None
        graph = batch.graph.to(_device_of(potential))
        with torch.no_grad():
            found = potential(graph, ("energy", *properties))
        energies = found.energy.double().cpu().numpy()
        sizes = [len(source.frames[place].structure) for place in chunk]
        cuts = np.cumsum(sizes)[:-1]

        def per_atom(values: torch.Tensor | None, graph: Any = graph, cuts: Any = cuts) -> list[Any] | None:
            if values is None:
                return None
            return np.split(graph.in_input_order(values).double().cpu().numpy(), cuts)

        forces, magmoms = per_atom(found.forces), per_atom(found.magmoms)
        stress = None if found.stress is None else found.stress.double().cpu().numpy()
        for row, place in enumerate(chunk):
            defined = stress is not None and source.frames[place].structure.has_volume
            yield (
                place,
                Prediction(
                    float(energies[row]),
                    None if forces is None else forces[row],
                    stress[row] if defined and stress is not None else None,
                    None if magmoms is None else magmoms[row],
                ),
            )


def _everywhere(values: dict[int, T], world: Communicator) -> dict[int, T]:
    """What any rank has of a frame, on all of them, in the order of the frames."""
    together = {place: value for part in world.gather_object(values) for place, value in part.items()}
    return {place: together[place] for place in sorted(together)}


def _device_of(potential: Potential) -> torch.device:
    parameters = getattr(potential, "parameters", None)
    first = next(parameters(), None) if parameters is not None else None
    return torch.device("cpu") if first is None else first.device


def _errors(frame: Frame, found: Prediction) -> np.ndarray:
    row = dict.fromkeys(_COLUMNS, 0.0)
    if frame.energy is not None:
        error = (found.energy - frame.energy) / len(frame.structure)
        row |= {"energy_error": error, "energy_abs": abs(error), "energy_square": error**2, "energy_count": 1}
    if frame.forces is not None and found.forces is not None:
        errors = found.forces - frame.forces
        row |= {
            "forces_abs": np.abs(errors).sum() / 3,
            "forces_square": (errors**2).sum() / 3,
            "forces_zero": np.abs(frame.forces).sum() / 3,
            "forces_length": np.linalg.norm(errors, axis=1).sum(),
            "forces_atoms": len(errors),
        }
    if frame.stress is not None and found.stress is not None:
        errors = found.stress - frame.stress
        row |= {"stress_abs": np.abs(errors).mean(), "stress_square": (errors**2).mean(), "stress_count": 1}
    if frame.magmoms is not None and found.magmoms is not None:
        errors = found.magmoms - np.abs(frame.magmoms)
        row |= {"magmoms_abs": np.abs(errors).sum(), "magmoms_count": len(errors)}
    return np.array([row[name] for name in _COLUMNS])


def _places(names: Sequence[str]) -> dict[str, list[int]]:
    """Where each name is, in the order of the names; the empty one is none."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        if name:
            places.setdefault(name, []).append(place)
    return {name: places[name] for name in sorted(places)}


def _table(errors: np.ndarray, places: list[int], atoms: Column) -> dict[str, Any]:
    total = dict(zip(_COLUMNS, errors[places].sum(axis=0).tolist(), strict=True))

    def mean(name: str, count: str) -> float | None:
        return total[name] / total[count] if total[count] else None

    def root_mean(name: str, count: str) -> float | None:
        return float(np.sqrt(total[name] / total[count])) if total[count] else None

    return {
        "structures": len(places),
        "atoms": int(atoms[places].sum()),
        "energy_mae": mean("energy_abs", "energy_count"),
        "energy_rmse": root_mean("energy_square", "energy_count"),
        "energy_shift": mean("energy_error", "energy_count"),
        "forces_mae": mean("forces_abs", "forces_atoms"),
        "forces_rmse": root_mean("forces_square", "forces_atoms"),
        "forces_mae_zero": mean("forces_zero", "forces_atoms"),
        "stress_mae": mean("stress_abs", "stress_count"),
        "stress_rmse": root_mean("stress_square", "stress_count"),
        "magmoms_mae": mean("magmoms_abs", "magmoms_count"),
    }


def _sums(errors: np.ndarray) -> dict[str, tuple[float, float]]:
    total = dict(zip(_COLUMNS, errors.sum(axis=0).tolist(), strict=True))
    return {
        "energy": (total["energy_abs"], total["energy_count"]),
        "forces": (total["forces_length"], total["forces_atoms"]),
        "stress": (total["stress_abs"], total["stress_count"]),
        "magmoms": (total["magmoms_abs"], total["magmoms_count"]),
    }


def _by_element(atomic_numbers: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """A row for each element of a structure: atomic number, atoms, and the sum of their mean absolute components."""
    present, which = np.unique(atomic_numbers, return_inverse=True)
    sums = np.bincount(which, np.abs(errors).mean(axis=1), len(present))
    return np.stack([present, np.bincount(which, minlength=len(present)), sums], axis=1)


def _by_symbol(rows: Mapping[int, np.ndarray]) -> dict[str, dict[str, Any]]:
    from ase.data import chemical_symbols

    per_element = np.zeros((HIGHEST_ATOMIC_NUMBER + 1, 2))
    if rows:
        every = np.concatenate(list(rows.values()))
        np.add.at(per_element, every[:, 0].astype(np.int64), every[:, 1:])

    return {
        chemical_symbols[z]: {
            "atoms": int(per_element[z, 0]),
            "forces_mae": float(per_element[z, 1] / per_element[z, 0]),
        }
        for z in np.flatnonzero(per_element[:, 0])
    }


def _points(frame: Frame, found: Prediction, references: np.ndarray) -> dict[str, np.ndarray]:
    points = {}
    if frame.energy is not None:
        baseline = references[frame.structure.task, frame.structure.atomic_numbers].sum()
        pair = np.array([[frame.energy - baseline, found.energy - baseline]])
        points["energy"] = pair / len(frame.structure)
    if frame.forces is not None and found.forces is not None:
        points["forces"] = np.stack([frame.forces.ravel(), found.forces.ravel()], axis=1)
    if frame.stress is not None and found.stress is not None:
        points["stress"] = np.stack([frame.stress.ravel(), found.stress.ravel()], axis=1)
    return points


def _parity(frames: Sequence[Frame], points: dict[int, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    collected: dict[str, list[np.ndarray]] = {}
    for place in points:
        for label, pairs in points[place].items():
            collected.setdefault(f"{label}/{frames[place].task}", []).append(pairs)
    joined = {name: np.concatenate(parts) for name, parts in collected.items()}
    return {name: pairs[:: -(-len(pairs) // _PARITY_POINTS)] for name, pairs in joined.items()}
