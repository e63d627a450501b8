"""Energy and forces are continuous and forces have bounded slope where edges come and go and angles are flat."""

import numpy as np
import pytest
import torch

from janus_graph import build_graph
from matris_model.testing import Candidate
from model_cases import TINY, molecule, stirred

CANDIDATE = Candidate(stirred(), TINY.cutoff, TINY.near_cutoff)
STEP = 1e-7

COMPANY = {
    "alone": np.zeros((0, 3)),
    "with one near atom": np.array([[0.3, 1.2, 0.1]]),
    "among atoms": np.array([[0.3, 1.2, 0.1], [-0.8, 0.2, 1.4], [1.1, -1.0, 0.6]]),
}


def jumps(structure_at, step=STEP, candidate=CANDIDATE):
    """How far energy (eV) and forces (eV/Å) at ±step are from the straight lines through what is on either side."""
    values = candidate([structure_at(x * step) for x in (-3, -1, 1, 3)])
    energy = np.array([[value.energy] for value in values])
    forces = np.array([value.forces.ravel() for value in values])
    return [np.abs((y[2] - y[1]) - ((y[1] - y[0]) + (y[3] - y[2])) / 2).max() for y in (energy, forces)]


def crossing(cutoff, others):
    """A structure whose second atom is `cutoff` + x away from the first, in a direction that is nothing special."""
    direction = np.array([0.6, -0.48, 0.64])

    def at(x):
        positions = np.concatenate([[np.zeros(3), (cutoff + x) * direction], others])
        return molecule([8, 26, 6, 1, 7][: len(positions)], positions)

    return at


@pytest.mark.parametrize("others", COMPANY.values(), ids=COMPANY.keys())
@pytest.mark.parametrize("cutoff", [TINY.cutoff, TINY.near_cutoff], ids=["cutoff", "near cutoff"])
def test_energy_and_forces_do_not_jump_where_a_neighbour_crosses(cutoff, others):
    at = crossing(cutoff, others)
    inside, outside = (build_graph([at(x)], TINY.cutoff, TINY.near_cutoff) for x in (-STEP, STEP))
    assert inside.edges + inside.near.pairs > outside.edges + outside.near.pairs or len(others) == 0
    energy, forces = jumps(at)
    assert energy < 1e-8
    assert forces < 1e-6


@pytest.mark.parametrize("others", COMPANY.values(), ids=COMPANY.keys())
@pytest.mark.parametrize("cutoff", [TINY.cutoff, TINY.near_cutoff], ids=["cutoff", "near cutoff"])
def test_the_slope_of_forces_is_bounded_and_continuous_where_a_neighbour_crosses(cutoff, others):
    at = crossing(cutoff, others)

    def largest_change_of_slope(step):
        forces = np.array([value.forces.ravel() for value in CANDIDATE([at(step * n) for n in range(-6, 7)])])
        return np.abs(np.diff(forces, n=2, axis=0)).max() / step

    coarse, fine = largest_change_of_slope(2e-4), largest_change_of_slope(1e-5)
    # Slopes of a curve grow together in proportion to the step; across a kink they would differ however fine it is.
    assert coarse < 1.0
    assert fine < coarse / 10 + 1e-7


@pytest.mark.parametrize("others", COMPANY.values(), ids=COMPANY.keys())
def test_nothing_jumps_at_the_cutoff_however_large_the_attention_logits_would_be(others):
    model = stirred()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.query.weight *= 1e3
    candidate = Candidate(model, TINY.cutoff, TINY.near_cutoff)
    energy, forces = jumps(crossing(TINY.cutoff, others), candidate=candidate)
    assert energy < 1e-8
    assert forces < 1e-6


@pytest.mark.parametrize("others", COMPANY.values(), ids=COMPANY.keys())
@pytest.mark.parametrize("straight", [True, False], ids=["180 degrees", "0 degrees"])
def test_energy_and_forces_are_smooth_where_a_bond_angle_is_flat(straight, others):
    sign = -1 if straight else 1

    def bent(angle):
        positions = [[1.1, 0, 0], [0, 0, 0], [sign * 2.3 * np.cos(angle), 2.3 * np.sin(angle), 0]]
        return molecule(
            [8, 6, 7, 1, 1, 1][: 3 + len(others)], np.concatenate([positions, others + np.array([0.1, 0.0, 0.9])])
        )

    for step in (1e-7, 1e-4):
        energy, forces = jumps(bent, step)
        # What a smooth curve with derivatives of order ten leaves over is step² of it.
        assert energy < 1e-8 + 100 * step**2
        assert forces < 1e-7 + 100 * step**2


def test_the_bending_constant_of_a_straight_molecule_does_not_depend_on_the_displacement():
    displacements = np.array([1e-4, 1e-3, 1e-2])
    bends = CANDIDATE([molecule([8, 6, 8], [[-1.1, 0, 0], [0, x, 0], [1.4, 0, 0]]) for x in displacements])
    constants = np.array([-bend.forces[1, 1] for bend in bends]) / displacements
    assert abs(constants[0]) > 0.1
    np.testing.assert_allclose(constants, constants[0], rtol=0.01)


def test_edge_features_fade_at_the_cutoff_after_every_block():
    after = []

    def record(block, atoms, edges, geometry):
        after.append(block(atoms, edges, geometry))
        return after[-1]

    graph = build_graph([crossing(TINY.cutoff, COMPANY["alone"])(-1e-5)], TINY.cutoff, TINY.near_cutoff)
    stirred().energies(graph, run_block=record)
    assert len(after) == TINY.blocks
    for atoms, edges in after:
        assert edges.shape == (2, TINY.edge_width)
        assert float(edges.detach().abs().max()) < 1e-12
        assert float(atoms.detach().abs().max()) > 1e-3
