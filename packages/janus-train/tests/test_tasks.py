"""One model for several levels of theory, charges and spins."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from janus_comm import SingleRank
from janus_graph import Structure
from janus_train import ReplicatedStep, UserError, load_config
from janus_train.data.batch import FrameSource
from janus_train.data.frame import Frame, with_task_indices
from janus_train.data.load import load_data
from janus_train.data.statistics import fit_statistics, require_determined
from janus_train.loss import loss_errors, make_loss
from matris_model import MatRISMoE

TINY = {"blocks": 1, "width": 16, "edge_width": 8, "heads": 2, "cutoff": 4.0, "near_cutoff": 3.0}
STATES = list(product((0, 1, -2), (1, 3), ("hybrid", "semilocal")))


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    """One molecule in several states, with an energy for each."""
    shape = (
        np.array([8, 1, 1]),
        np.array([[0.0, 0, 0], [0, 0.8, 0.6], [0, -0.8, 0.6]]),
        np.zeros((3, 3)),
        np.zeros(3, bool),
    )
    return [
        Frame(
            Structure(*shape, charge=charge, spin=spin), task, energy=-100.0 * (task == "hybrid") + charge + 0.1 * spin
        )
        for charge, spin, task in STATES
    ]


def test_charge_spin_and_task_make_the_same_atoms_different_structures(frames: list[Frame]):
    tasks = ("hybrid", "semilocal")
    model = MatRISMoE.from_preset("nano", 0, **TINY, tasks=tasks).double()
    source = FrameSource(with_task_indices(frames, tasks), 4.0, 3.0)
    found = model(source.batch(range(len(frames))).graph, ("energy",)).energy
    assert len({round(value, 9) for value in found.tolist()}) == len(STATES)


def test_each_task_is_measured_against_its_own_references_and_scale(frames: list[Frame]):
    tasks = ("hybrid", "semilocal")
    statistics = fit_statistics(frames, tasks)
    model = MatRISMoE.from_preset("nano", 0, **TINY, tasks=tasks).double()
    model.references.copy_(torch.from_numpy(statistics.references))
    model.scales.zero_()
    source = FrameSource(with_task_indices(frames, tasks), 4.0, 3.0)
    batch = source.batch(range(len(frames)))
    errors = loss_errors(model(batch.graph, ("energy",)), batch)["energy"].detach().numpy()
    for task in tasks:
        own = np.array([frame.task == task for frame in frames])
        energies = np.array([frame.energy for frame in frames])[own]
        # Of one composition the references are the mean.
        assert errors[own] == pytest.approx(np.abs(energies - energies.mean()) / 3, abs=1e-9)


@pytest.mark.parametrize("periodic", [False, True])
def test_a_set_of_one_molecule_trains_without_a_knob_turned_and_crystals_without_stress_are_an_error(
    periodic: bool, tmp_path: Path
):
    made = []
    for number in range(20):
        atoms = Atoms("OH2", [[0, 0, 0], [0, 0.8, 0.6], [0, -0.8, 0.6 + 0.01 * number]], cell=[6, 6, 6], pbc=periodic)
        atoms.calc = SinglePointCalculator(atoms, energy=-76.0 * 27.2, forces=np.zeros((3, 3)))
        made.append(atoms)
    write(tmp_path / "water.extxyz", made, format="extxyz")
    config = load_config(None, [f"data.train={tmp_path / 'water.extxyz'}"])
    if periodic:
        with pytest.raises(UserError, match="no key 'stress'"):
            load_data(config)
        return
    data = load_data(config)
    statistics = fit_statistics(data.train, data.tasks, config.references)
    require_determined(statistics, data.tasks, config.references)
    loss = make_loss(config.loss, data.tasks)
    model = MatRISMoE.from_preset("nano", 0, **TINY, tasks=data.tasks, elements=data.elements)
    model.references.copy_(torch.from_numpy(statistics.references))
    step = ReplicatedStep(model, loss, SingleRank())
    result = step.gradients(step.prepare(FrameSource(data.train, 4.0, 3.0), range(4)))
    assert result.finite
    assert result.terms["stress"] == 0
    assert result.terms["energy"] < 1
