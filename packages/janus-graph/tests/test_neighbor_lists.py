import dataclasses
import functools
import itertools

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list as ase_neighbor_list
from hypothesis import given
from hypothesis import strategies as st

from graph_strategies import cutoffs, seeds, structures
from janus_graph import Structure, neighbor_list
from janus_graph.search import compiled_search, library_search
from janus_graph.search.library import complete_cell
from janus_graph.testing import NEIGHBOR_LIST_LAWS, brute_force_neighbor_list

SEARCHES = {
    "pairs": functools.partial(compiled_search, most_by_pairs=10**6),
    "bins": functools.partial(compiled_search, most_by_pairs=0),
    "library": library_search,
}
NOWHERE, EVERYWHERE = [False] * 3, [True] * 3


def edges_of(listed):
    return {
        (i, j, *shift)
        for i, j, shift in zip(listed.centre.tolist(), listed.neighbour.tolist(), listed.shift.tolist(), strict=True)
    }


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
@pytest.mark.parametrize("law", NEIGHBOR_LIST_LAWS, ids=lambda law: law.__name__)
@given(structure=structures(), cutoff=cutoffs, seed=seeds)
def test_neighbor_list_law(search, law, structure, cutoff, seed):
    law(functools.partial(neighbor_list, search=search), structure, cutoff, np.random.default_rng(seed))


@given(structure=structures(), cutoff=cutoffs)
def test_brute_force_finds_what_another_program_finds(structure, cutoff):
    atoms = Atoms(
        numbers=structure.atomic_numbers, positions=structure.positions, cell=structure.cell, pbc=structure.periodic
    )
    # That program cannot take vectors that are not independent, even where nothing repeats along them.
    atoms.cell[~structure.periodic] = 0.0
    i, j, shift, distance = ase_neighbor_list("ijSd", atoms, cutoff)
    edges = zip(i.tolist(), j.tolist(), shift.tolist(), distance.tolist(), strict=True)
    theirs = {(a, b, *s): length for a, b, s, length in edges}
    listed = brute_force_neighbor_list(structure, cutoff)
    ours = dict(zip(zip(listed.centre, listed.neighbour, *listed.shift.T, strict=True), listed.distance, strict=True))
    for edge in ours.keys() ^ theirs.keys():
        assert (ours.get(edge) or theirs.get(edge)) == pytest.approx(cutoff, rel=1e-12)
    for edge in ours.keys() & theirs.keys():
        assert ours[edge] == pytest.approx(theirs[edge], rel=1e-12, abs=1e-12)


@given(structure=structures(), cutoff=cutoffs, seed=seeds)
def test_vectors_along_which_nothing_repeats_do_not_matter(structure, cutoff, seed):
    other_rows = np.random.default_rng(seed).normal(scale=5.0, size=(3, 3))
    other = dataclasses.replace(structure, cell=np.where(structure.periodic[:, None], structure.cell, other_rows))
    before, after = neighbor_list(structure, cutoff), neighbor_list(other, cutoff)
    assert edges_of(before) == edges_of(after)
    np.testing.assert_array_equal(before.distance, after.distance)
    assert not after.shift[:, ~structure.periodic].any()


@given(structure=structures(), cutoff=cutoffs)
def test_recorded_lengths_are_those_of_the_recorded_vectors(structure, cutoff):
    listed = neighbor_list(structure, cutoff)
    for i, j, shift, length in zip(listed.centre, listed.neighbour, listed.shift, listed.distance, strict=True):
        vector = structure.positions[j] + shift @ structure.cell - structure.positions[i]
        assert length == pytest.approx(np.linalg.norm(vector), rel=1e-12, abs=1e-12)
        assert length < cutoff


@pytest.mark.parametrize("edge", [0.5, 2.0, 2.7])
def test_a_neighbour_at_the_cutoff_is_excluded_and_one_just_below_included(edge):
    crystal = Structure([29], np.full((1, 3), 0.3), edge * np.eye(3), EVERYWHERE)
    assert len(neighbor_list(crystal, edge)) == 0
    assert len(neighbor_list(crystal, np.nextafter(edge, np.inf))) == 6
    dimer = Structure([1, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, edge]], np.zeros((3, 3)), NOWHERE)
    assert len(neighbor_list(dimer, edge)) == 0
    assert len(neighbor_list(dimer, np.nextafter(edge, np.inf))) == 2


@given(lattice_constant=st.floats(2.0, 4.0), seed=seeds)
def test_rounding_does_not_decide_about_a_shell_of_neighbours_at_the_cutoff(lattice_constant, seed):
    # Turned and moved, the equal distances of a symmetric crystal differ in their last bits.
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    cell = lattice_constant * rotation
    face_centres = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    places = face_centres + rng.uniform(size=3) + rng.integers(-3, 4, size=(4, 3))
    crystal = Structure(np.full(4, 29), places @ cell, cell, EVERYWHERE)
    longer = neighbor_list(crystal, 1.3 * lattice_constant)
    for distance in np.unique(longer.distance):
        for limit in (distance, np.nextafter(distance, np.inf)):
            assert len(neighbor_list(crystal, limit)) == (longer.distance < limit).sum()


@given(structures())
def test_the_completed_cell_keeps_what_repeats_and_adds_unit_vectors_at_right_angles(structure):
    periodic = structure.periodic
    cell = complete_cell(structure.cell, periodic)
    np.testing.assert_array_equal(cell[periodic], structure.cell[periodic])
    added = cell[~periodic]
    np.testing.assert_allclose(added @ added.T, np.eye(len(added)), atol=1e-14)
    np.testing.assert_allclose(added @ cell[periodic].T, 0, atol=1e-13)


@pytest.mark.parametrize("cutoff", [0.9, 1.1, 3.3, 6.1])
@pytest.mark.parametrize("periodic", list(itertools.product([False, True], repeat=3)))
def test_self_images_of_a_cell_smaller_than_the_cutoff_are_the_lattice_points_in_reach(periodic, cutoff):
    axes = [range(-7, 8) if repeats else range(1) for repeats in periodic]
    within = {point for point in itertools.product(*axes) if any(point) and np.linalg.norm(point) < cutoff}
    listed = neighbor_list(Structure([26], [[0.2, 7.7, -3.1]], np.eye(3), periodic), cutoff)
    assert {tuple(shift) for shift in listed.shift.tolist()} == within
    assert len(listed) == len(within)


@pytest.mark.parametrize("corner", [(0, 0, 0), (1, 0, 0), (1, 1, 1), (-2, 3, 1)])
def test_two_atoms_at_images_of_the_same_corner_are_neighbours_at_no_distance(corner):
    cell = np.array([[3.0, 0.0, 0.0], [0.5, 2.5, 0.0], [0.25, -0.5, 4.0]])
    structure = Structure([1, 8], np.array([(0, 0, 0), corner]) @ cell, cell, EVERYWHERE)
    listed = neighbor_list(structure, 0.5)
    assert edges_of(listed) == {(0, 1, *(-n for n in corner)), (1, 0, *corner)}
    assert not listed.distance.any()


@pytest.mark.parametrize("atoms", [1, 2, 50])
@pytest.mark.parametrize("periodic", [NOWHERE, EVERYWHERE])
def test_atoms_out_of_reach_have_no_edges(atoms, periodic):
    positions = 10.0 * np.arange(atoms)[:, None] * np.ones(3)
    listed = neighbor_list(Structure(np.ones(atoms), positions, 10.0 * (atoms + 1) * np.eye(3), periodic), 6.0)
    assert (listed.centre.shape, listed.neighbour.shape, listed.distance.shape) == ((0,), (0,), (0,))
    assert listed.shift.shape == (0, 3)
    assert len(listed) == 0


@given(structure=structures(), cutoff=st.sampled_from([0.0, -1.0, float("nan"), float("inf")]))
def test_a_cutoff_that_is_no_length_is_refused(structure, cutoff):
    with pytest.raises(ValueError, match="positive length"):
        neighbor_list(structure, cutoff)


@given(structure=structures(), cutoff=cutoffs)
def test_the_structure_is_not_changed(structure, cutoff):
    before = [array.copy() for array in (structure.atomic_numbers, structure.positions, structure.cell)]
    neighbor_list(structure, cutoff)
    for array, copy in zip((structure.atomic_numbers, structure.positions, structure.cell), before, strict=True):
        np.testing.assert_array_equal(array, copy)
