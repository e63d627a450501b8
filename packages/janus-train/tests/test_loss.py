from dataclasses import replace

import numpy as np
import pytest
import torch

from janus_graph import Properties, Structure
from janus_train.config import LossConfig, TaskLoss
from janus_train.data.batch import FrameSource, label_counts
from janus_train.data.frame import Frame, fingerprint, with_task_indices
from janus_train.data.load import bundled_frames
from janus_train.evaluate import Evaluation
from janus_train.failure import UserError
from janus_train.loss import Loss, loss_sums, make_loss, weighted_loss


def frames() -> list[Frame]:
    """Three structures; the second has an energy only, the third nothing."""
    rng = np.random.default_rng(0)
    made = []
    for count in (3, 1, 2):
        structure = Structure(
            rng.choice([8, 1], count), rng.normal(0, 2, (count, 3)), 6 * np.eye(3), np.ones(3, dtype=bool)
        )
        labels = {"energy": 1.5, "forces": rng.normal(size=(count, 3)), "stress": rng.normal(size=(3, 3))}
        kept = {3: ("energy", "forces", "stress"), 1: ("energy",), 2: ()}[count]
        made.append(Frame(structure, "a", **{name: labels[name] for name in kept}))
    return made


def predicted(batch) -> Properties:
    generator = torch.Generator().manual_seed(0)
    atoms, structures = len(batch.forces), len(batch.energy)
    return Properties(
        torch.randn(structures, generator=generator, dtype=torch.float64),
        torch.randn(atoms, 3, generator=generator, dtype=torch.float64),
        torch.randn(structures, 3, 3, generator=generator, dtype=torch.float64),
    )


def test_sums_are_those_of_a_loop_over_what_is_labelled():
    given = frames()
    batch = FrameSource(given, 3.0, 2.0).batch(range(3))
    found = predicted(batch)
    forces = batch.graph.in_input_order(found.forces).numpy()
    expected = {"energy": 0.0, "forces": 0.0, "stress": 0.0}
    first = 0
    for place, frame in enumerate(given):
        count = len(frame.structure)
        if frame.energy is not None:
            expected["energy"] += abs(found.energy[place].item() - frame.energy) / count
        if frame.forces is not None:
            expected["forces"] += np.linalg.norm(forces[first : first + count] - frame.forces, axis=1).sum()
        if frame.stress is not None:
            expected["stress"] += np.abs(found.stress[place].numpy() - frame.stress).mean()
        first += count
    sums = loss_sums(found, batch)
    for name, value in expected.items():
        assert sums[name].item() == pytest.approx(value, abs=1e-9)
    assert label_counts(given) == {"energy": 2, "forces": 3, "stress": 1, "magmoms": 0}


def test_labels_that_are_missing_move_nothing():
    given = frames()
    batch = FrameSource(given, 3.0, 2.0).batch(range(3))
    found = predicted(batch)
    moved = Properties(
        torch.where(batch.has_energy, found.energy, found.energy + 7),
        torch.where(batch.has_forces[:, None], found.forces, found.forces + 7),
        torch.where(batch.has_stress[:, None, None], found.stress, found.stress + 7),
    )
    for name, value in loss_sums(found, batch).items():
        assert loss_sums(moved, batch)[name].item() == value.item()


def test_the_loss_is_the_weighted_sum_of_means_and_zero_labels_are_no_division():
    sums = {"energy": torch.tensor(6.0), "forces": torch.tensor(0.0)}
    loss = weighted_loss(sums, {"energy": 3, "forces": 0}, {"energy": 2.0, "forces": 5.0})
    assert loss.item() == pytest.approx(4.0)


def test_the_slope_is_finite_where_forces_are_exact():
    given = frames()
    batch = FrameSource(given, 3.0, 2.0).batch([0])
    forces = batch.forces.clone().requires_grad_()
    loss_sums(Properties(batch.energy, forces), batch)["forces"].backward()
    assert torch.isfinite(forces.grad).all()


def test_bundled_frames_are_read_as_ever_and_come_with_every_label_they_promise():
    """Runs are resumed only on data of the same checksum, so that reading must not change it."""
    bundled = bundled_frames()
    assert fingerprint(bundled).startswith("a13f720bbde4b508dbac8b2ffbc4dbf3")
    for frame in bundled[::50]:
        assert frame.has("energy")
        assert frame.has("forces")
        assert frame.has("stress") == frame.structure.has_volume


LOSSES = {
    "plain": Loss({"energy": 2.0, "forces": 3.0, "stress": 5.0}),
    "by structure": Loss({"forces": 3.0}, forces_over_structures=True),
    "huber": Loss({"energy": 2.0}, energy_huber=0.4),
    "tasks": make_loss(
        LossConfig(energy=2, forces=3, stress=0, tasks={"b": TaskLoss(energy=0.25, forces=0), "c": TaskLoss(forces=4)}),
        ("a", "b", "c"),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_that_of_a_loop_over_frames_however_they_are_cut_into_batches(name: str):
    loss = LOSSES[name]
    given = with_task_indices(
        [replace(frame, task=task) for frame, task in zip(frames() * 2, "abcabc", strict=True)], ("a", "b", "c")
    )
    source = FrameSource(given, 3.0, 2.0)
    whole = source.batch(range(len(given)))
    found = predicted(whole)
    forces = whole.graph.in_input_order(found.forces)
    counts = loss.counts(given)
    expected, atoms = dict.fromkeys(loss.weights, 0.0), 0
    for place, frame in enumerate(given):
        factor = {term: loss.factors[term][frame.structure.task].item() if term in loss.factors else 1.0
                  for term in loss.weights}  # fmt: skip
        rows = forces[atoms : atoms + len(frame.structure)].numpy()
        atoms += len(frame.structure)
        if frame.energy is not None and "energy" in loss.weights:
            error = abs(found.energy[place].item() - frame.energy) / len(frame.structure)
            below = loss.energy_huber
            if below:
                error = error**2 / (2 * below) if error < below else error - below / 2
            expected["energy"] += factor["energy"] * error
        if frame.forces is not None and "forces" in loss.weights:
            lengths = np.linalg.norm(rows - frame.forces, axis=1)
            over = lengths.mean() if loss.forces_over_structures else lengths.sum()
            expected["forces"] += factor["forces"] * over
        if frame.stress is not None and "stress" in loss.weights:
            expected["stress"] += np.abs(found.stress[place].numpy() - frame.stress).mean()
    value = sum(weight * expected[term] / counts[term] for term, weight in loss.weights.items())
    ends = np.cumsum([0, *(len(frame.structure) for frame in given)])
    for cuts in ([range(6)], [range(2), range(2, 6)], [[place] for place in range(6)]):
        total = 0.0
        for some in cuts:
            batch = source.batch(some)
            own = batch.graph.from_input_order(forces[ends[some[0]] : ends[some[-1] + 1]])
            part = Properties(found.energy[list(some)], own, found.stress[list(some)])
            errors = loss.by_task(loss.errors(part, batch), batch)
            sums = {term: items.sum() for term, items in errors.items()}
            total += weighted_loss(sums, counts, loss.weights).item()
        assert total == pytest.approx(value, abs=1e-8)


def test_factors_of_tasks_that_are_not_there_or_leave_nothing_are_refused():
    with pytest.raises(UserError, match=r"loss\.tasks: the data have no task 'x'; they have a, b"):
        make_loss(LossConfig(tasks={"x": TaskLoss(energy=2)}), ("a", "b"))
    with pytest.raises(UserError, match="energy has a factor of zero in all tasks"):
        make_loss(LossConfig(tasks={"a": TaskLoss(energy=0)}), ("a",))


def test_what_validates_a_run_has_the_factors_of_tasks_too():
    found = Evaluation(
        tasks={}, elements={}, parity={},
        sums={
            "a": {"energy": (4.0, 2.0), "forces": (9.0, 3.0), "stress": (0.0, 0.0), "magmoms": (0.0, 0.0)},
            "b": {"energy": (8.0, 2.0), "forces": (3.0, 3.0), "stress": (0.0, 0.0), "magmoms": (0.0, 0.0)},
        },
    )  # fmt: skip
    assert found.loss(LossConfig(energy=1, forces=2)) == pytest.approx(12 / 4 + 2 * 12 / 6)
    factors = {"b": TaskLoss(energy=0.5, forces=0.0)}
    assert found.loss(LossConfig(energy=1, forces=2, tasks=factors)) == pytest.approx(8 / 4 + 2 * 9 / 6)
