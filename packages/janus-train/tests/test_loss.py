import numpy as np
import pytest
import torch

from janus_graph import Properties, Structure
from janus_train.data.batch import FrameSource, label_counts
from janus_train.data.frame import Frame
from janus_train.data.load import bundled_frames
from janus_train.loss import loss_sums, weighted_loss


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


def test_bundled_frames_come_with_every_label_they_promise():
    for frame in bundled_frames()[::50]:
        assert frame.has("energy")
        assert frame.has("forces")
        assert frame.has("stress") == frame.structure.has_volume
