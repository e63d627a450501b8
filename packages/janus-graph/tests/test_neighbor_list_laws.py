"""The laws themselves: they pass what is right and fail what is wrong."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from janus_graph import NeighborList, Structure, neighbor_list, neighbor_lists
from janus_graph.search import compiled_search, library_search
from janus_graph.testing import brute_force_neighbor_list, check_neighbor_list, sample_structures
from janus_graph.testing import neighbor_lists as laws


def rows(listed, chosen):
    """Some edges of a list in some order; reverses are right for those that have one, and otherwise the edge itself."""
    centre, neighbour, shift = listed.centre[chosen], listed.neighbour[chosen], listed.shift[chosen]
    edges = list(zip(centre.tolist(), neighbour.tolist(), *shift.T.tolist(), strict=True))
    place = {edge: index for index, edge in enumerate(edges)}
    reverse = [place.get((j, i, -a, -b, -c), place[i, j, a, b, c]) for i, j, a, b, c in edges]
    return NeighborList(centre, neighbour, shift, listed.distance[chosen], np.array(reverse, dtype=np.int64))


def only_the_nearest_images(structure, cutoff):
    listed = neighbor_list(structure, cutoff)
    return rows(listed, (np.abs(listed.shift) <= 1).all(axis=1))


def last_edge_first(structure, cutoff):
    return rows(neighbor_list(structure, cutoff), slice(None, None, -1))


def every_edge_twice(structure, cutoff):
    listed = neighbor_list(structure, cutoff)
    return rows(listed, np.repeat(np.arange(len(listed)), 2))


def up_to_the_cutoff(structure, cutoff):
    return neighbor_list(structure, np.nextafter(cutoff, np.inf))


def half_of_the_edges(structure, cutoff):
    listed = neighbor_list(structure, cutoff)
    return rows(listed, listed.centre <= listed.neighbour)


def shifts_of_wrapped_atoms(structure, cutoff):
    listed = neighbor_list(structure, cutoff)
    if not structure.periodic.any():
        return listed
    home = np.floor(structure.positions @ np.linalg.pinv(structure.cell)).astype(np.int32)
    shift = listed.shift + home[listed.neighbour] - home[listed.centre]
    order = np.lexsort((*shift.T[::-1], listed.neighbour, listed.centre))
    return rows(dataclasses.replace(listed, shift=shift), order)


def only_atoms_at_positive_x(structure, cutoff):
    listed = neighbor_list(structure, cutoff)
    return rows(listed, structure.positions[listed.centre, 0] > 0)


def only_steps_along_z(structure, cutoff):
    listed = neighbor_list(structure, cutoff)
    vectors = structure.positions[listed.neighbour] - structure.positions[listed.centre]
    return rows(listed, np.abs(vectors + listed.shift @ structure.cell)[:, 2] > cutoff / 4)


def all_but_the_first_atom(structure, cutoff):
    listed = neighbor_list(structure, cutoff)
    return rows(listed, listed.centre > 0)


def one_edge_less(structure, cutoff):
    return rows(neighbor_list(structure, cutoff), slice(1, None))


def lengths_too_long(structure, cutoff):
    listed = neighbor_list(structure, cutoff)
    return dataclasses.replace(listed, distance=listed.distance + 1e-6)


def reverses_between_the_same_atoms_through_any_image(structure, cutoff):
    listed = neighbor_list(structure, cutoff)
    return dataclasses.replace(listed, reverse=np.lexsort((listed.centre, listed.neighbour)))


def no_reverses(structure, cutoff):
    return dataclasses.replace(neighbor_list(structure, cutoff), reverse=np.zeros(0, dtype=np.int64))


WRONG = [
    (laws.edges_equal_brute_force, one_edge_less),
    (laws.edges_equal_brute_force, lengths_too_long),
    (laws.edges_equal_brute_force, only_the_nearest_images),
    (laws.edges_are_sorted, last_edge_first),
    (laws.edges_are_sorted, every_edge_twice),
    (laws.edges_are_shorter_than_the_cutoff, up_to_the_cutoff),
    (laws.edges_have_a_reverse, half_of_the_edges),
    (laws.reverses_are_found_where_they_are, reverses_between_the_same_atoms_through_any_image),
    (laws.reverses_are_found_where_they_are, no_reverses),
    (laws.edges_do_not_depend_on_wrapping, shifts_of_wrapped_atoms),
    (laws.edges_do_not_depend_on_wrapping, only_the_nearest_images),
    (laws.edges_do_not_depend_on_translation, only_atoms_at_positive_x),
    (laws.edges_do_not_depend_on_rotation, only_steps_along_z),
    (laws.edges_follow_a_permutation, all_but_the_first_atom),
    (laws.edges_do_not_depend_on_the_choice_of_lattice_vectors, only_the_nearest_images),
    (laws.edges_of_a_supercell_are_copies, only_the_nearest_images),
]


def from_the_middle_of_a_batch(structure, cutoff):
    """The list of a structure that is searched together with all samples."""
    others = list(sample_structures().values())
    return neighbor_lists([*others, structure, *others], cutoff, compiled_search)[len(others)]


RIGHT = {
    "default": neighbor_list,
    "naive": brute_force_neighbor_list,
    "pairs": functools.partial(neighbor_list, search=functools.partial(compiled_search, most_by_pairs=10**6)),
    "bins": functools.partial(neighbor_list, search=functools.partial(compiled_search, most_by_pairs=0)),
    "library": functools.partial(neighbor_list, search=library_search),
    "batched": from_the_middle_of_a_batch,
}


@pytest.mark.parametrize("right", RIGHT.values(), ids=RIGHT.keys())
def test_a_right_list_passes_every_law(right):
    check_neighbor_list(right)


@pytest.mark.parametrize(("law", "wrong"), WRONG, ids=lambda function: function.__name__)
def test_a_law_fails_a_list_that_breaks_it(law, wrong):
    def run():
        for structure, seed in itertools.product(sample_structures().values(), range(3)):
            law(wrong, structure, 5.5, np.random.default_rng(seed))

    with pytest.raises(AssertionError, match="broken law"):
        run()


@pytest.mark.parametrize("wrong", sorted({wrong for _, wrong in WRONG}, key=lambda function: function.__name__))
def test_no_wrong_list_passes_the_whole_check(wrong):
    with pytest.raises(AssertionError, match="broken law"):
        check_neighbor_list(wrong)


def test_every_law_is_failed_by_something():
    assert {law for law, _ in WRONG} == set(laws.NEIGHBOR_LIST_LAWS)


def test_the_structures_and_cutoffs_to_check_can_be_chosen():
    seen = set()

    def recorded(structure, cutoff):
        seen.add(cutoff)
        return neighbor_list(structure, cutoff)

    isolated = Structure([1], np.zeros((1, 3)), np.zeros((3, 3)), [False] * 3)
    check_neighbor_list(recorded, structures=[isolated], cutoffs=[1.25])
    assert seen == {1.25}
    # Only an isolated atom is tried, and a list that loses edges cannot be told from a right one there.
    check_neighbor_list(one_edge_less, structures=[isolated])


def test_samples_cover_every_kind_and_keep_their_distance():
    samples = list(sample_structures().values())
    assert {int(sample.periodic.sum()) for sample in samples} == {0, 1, 2, 3}
    assert {bool(np.linalg.det(sample.cell) > 0) for sample in samples if sample.has_volume} == {True, False}
    lists = [brute_force_neighbor_list(sample, 5.5) for sample in samples]
    assert min(len(listed) for listed in lists) == 0
    assert min(listed.distance.min() for listed in lists if len(listed)) >= 1.0
