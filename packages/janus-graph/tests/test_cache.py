"""A graph from the cache is a fresh one, whatever moved in between."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_strategies import cutoffs, seeds, structures
from janus_graph import GraphCache, Structure, build_graph
from janus_graph.cache import still_complete
from janus_graph.search import compiled_search, library_search, pack
from janus_graph.search.select import edges_within

CUTOFF, NEAR = 2.6, 1.9
PERIODIC = [[True] * 3, [True, False, True], [False, False, True], [False] * 3]


def crystal(periodic, seed=0, atoms=100):
    """Two elements in a skewed box, as dense as a solid, some of them outside it."""
    rng = np.random.default_rng(seed)
    cell = np.array([[9.0, 0.0, 0.0], [1.5, 8.0, 0.5], [-2.0, 1.0, 14.0]])
    places = rng.uniform(-0.2, 1.2, size=(atoms, 3))
    return Structure(rng.choice([8, 22], size=atoms), places @ cell, cell, periodic)


def edges_in_input_order(graph):
    """Edges by the atoms as they were given, with their lengths as they come out, and which are near."""
    centre, neighbour = graph.input_index[graph.edge_index].tolist()
    vectors = graph.positions[graph.edge_index[1]] - graph.positions[graph.edge_index[0]]
    vectors = vectors + graph.edge_shifts @ graph.cells[0]
    near = set(graph.near.edges.tolist())
    shifts = graph.edge_shifts.to(int).tolist()
    lengths = vectors.norm(dim=1).tolist()
    return {
        (i, j, *shift): (length, place in near)
        for place, (i, j, shift, length) in enumerate(zip(centre, neighbour, shifts, lengths, strict=True))
    }


def assert_same_graph(found, fresh):
    one, other = edges_in_input_order(found), edges_in_input_order(fresh)
    assert one.keys() == other.keys()
    assert {edge: near for edge, (_, near) in one.items()} == {edge: near for edge, (_, near) in other.items()}
    np.testing.assert_allclose([one[edge][0] for edge in one], [other[edge][0] for edge in one], rtol=1e-13)
    assert (found.edge_index[:, found.reverse_edge] == found.edge_index.flip(0)).all()
    assert (found.edge_shifts[found.reverse_edge] == -found.edge_shifts).all()
    assert (found.elements, found.edges_per_element, found.near.pairs) == (
        fresh.elements,
        fresh.edges_per_element,
        fresh.near.pairs,
    )
    for name in ("positions", "atomic_numbers"):
        assert (found.in_input_order(getattr(found, name)) == fresh.in_input_order(getattr(fresh, name))).all()
    for name in ("cells", "periodic", "charges", "spins", "tasks", "composition"):
        assert (getattr(found, name) == getattr(fresh, name)).all()


def moved(structure, rng, kind):
    """The structure after one kind of change."""
    atoms = len(structure)
    if kind == "small steps":
        return dataclasses.replace(structure, positions=structure.positions + rng.normal(scale=0.02, size=(atoms, 3)))
    if kind == "one atom jumps":
        positions = structure.positions.copy()
        positions[rng.integers(atoms)] += rng.normal(scale=2.0, size=3)
        return dataclasses.replace(structure, positions=positions)
    if kind == "lattice vectors":
        steps = rng.integers(-1, 2, size=(atoms, 3)) * structure.periodic
        return dataclasses.replace(structure, positions=structure.positions + steps @ structure.cell)
    if kind == "strain":
        strain = np.eye(3) + rng.normal(scale=0.01, size=(3, 3))
        return dataclasses.replace(structure, positions=structure.positions @ strain, cell=structure.cell @ strain)
    if kind == "cell alone":
        return dataclasses.replace(structure, cell=structure.cell @ (np.eye(3) + rng.normal(scale=0.02, size=(3, 3))))
    if kind == "translation":
        return dataclasses.replace(structure, positions=structure.positions + rng.normal(scale=5.0, size=3))
    if kind == "elements":
        return dataclasses.replace(structure, atomic_numbers=rng.permutation(structure.atomic_numbers))
    if kind == "periodicity":
        return dataclasses.replace(structure, periodic=structure.periodic & (rng.random(3) < 0.5))
    if kind == "atoms":
        kept = np.sort(rng.permutation(atoms)[: atoms - 1])
        return dataclasses.replace(
            structure, atomic_numbers=structure.atomic_numbers[kept], positions=structure.positions[kept]
        )
    return dataclasses.replace(structure, charge=int(rng.integers(-2, 3)), spin=int(rng.integers(1, 4)), task=3)


KINDS = (
    "small steps", "one atom jumps", "lattice vectors", "strain", "cell alone", "translation", "elements",
    "periodicity", "atoms", "labels",
)  # fmt: skip


@given(
    st.sampled_from(PERIODIC), st.lists(st.sampled_from(KINDS), max_size=5), st.floats(0.05, 1.5), seeds,
    st.sampled_from([compiled_search, library_search]),
)  # fmt: skip
def test_a_graph_from_the_cache_is_a_fresh_one_whatever_moved(periodic, kinds, skin, seed, search):
    rng = np.random.default_rng(seed)
    structure = crystal(periodic, seed % 100)
    cache = GraphCache(CUTOFF, NEAR, skin, search)
    for kind in (None, *kinds):
        structure = structure if kind is None else moved(structure, rng, kind)
        assert_same_graph(cache.graph(structure), build_graph([structure], CUTOFF, NEAR))


@given(structures(), st.sampled_from(KINDS), cutoffs, st.floats(0.01, 2.0), seeds)
def test_a_list_that_is_still_complete_has_every_edge_of_any_moved_structure(structure, kind, cutoff, skin, seed):
    rng = np.random.default_rng(seed)
    longer = compiled_search(pack([structure]), cutoff + skin)
    for _ in range(5):
        now = moved(structure, rng, kind) if len(structure) > 1 or kind != "atoms" else structure
        if not still_complete(structure, now, cutoff, skin):
            continue
        selected = edges_within(longer, now.positions, now.cell, cutoff)
        fresh = compiled_search(pack([now]), cutoff)
        for field in dataclasses.fields(fresh):
            np.testing.assert_array_equal(getattr(selected, field.name), getattr(fresh, field.name))


@given(structures(), cutoffs, st.floats(0.01, 2.0))
def test_a_list_of_a_structure_that_did_not_move_is_complete(structure, cutoff, skin):
    assert still_complete(structure, structure, cutoff, skin)


@pytest.mark.parametrize("periodic", PERIODIC)
@pytest.mark.parametrize("kind", ["small steps", "strain", "translation", "labels"])
def test_edges_are_not_looked_for_again_after_small_changes(periodic, kind):
    rng = np.random.default_rng(0)
    structure = crystal(periodic)
    cache = GraphCache(CUTOFF, NEAR, skin=1.0)
    for _ in range(4):
        cache.graph(structure)
        structure = moved(structure, rng, kind)
    assert cache.rebuilds == 1


@pytest.mark.parametrize("kind", ["one atom jumps", "lattice vectors", "elements", "atoms"])
def test_edges_are_looked_for_again_after_large_changes(kind):
    structure = crystal([True] * 3)
    cache = GraphCache(CUTOFF, NEAR, skin=0.3)
    cache.graph(structure)
    cache.graph(moved(structure, np.random.default_rng(1), kind))
    assert cache.rebuilds == 2


def test_two_atoms_that_meet_halfway_use_up_the_skin_together():
    cutoff, skin = 2.0, 0.5
    atoms = np.array([[0.0, 0.0, 0.0], [2.49, 0.0, 0.0], [9.0, 0.0, 0.0]])
    before = Structure([1, 1, 1], atoms, np.zeros((3, 3)), [False] * 3)

    def after(step):
        return dataclasses.replace(before, positions=atoms + np.array([[step, 0, 0], [-step, 0, 0], [0, 0, 0]]))

    assert still_complete(before, after(0.2499), cutoff, skin)
    assert not still_complete(before, after(0.2501), cutoff, skin)


def test_changing_the_positions_that_were_handed_in_does_not_change_what_is_kept():
    structure = crystal([True] * 3)
    cache = GraphCache(CUTOFF, NEAR, skin=0.3)
    cache.graph(structure)
    structure.positions[:] = np.random.default_rng(3).permutation(structure.positions)
    assert_same_graph(cache.graph(structure), build_graph([structure], CUTOFF, NEAR))


@pytest.mark.parametrize("skin", [0.0, -1.0, float("nan"), float("inf")])
def test_a_skin_that_is_no_length_is_refused(skin):
    with pytest.raises(ValueError, match=r"skin is .* positive length"):
        GraphCache(3.0, 2.0, skin)


def test_cutoffs_are_checked_when_the_cache_is_made():
    with pytest.raises(ValueError, match="near_cutoff"):
        GraphCache(3.0, 4.0, 0.5)
