"""All searches give the same edges, to the last bit, alone or in a batch, under any names of the atoms."""

import dataclasses
import functools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_strategies import cutoffs, seeds, structures
from janus_graph import Structure, neighbor_list, neighbor_lists
from janus_graph.batch import pack_in_order
from janus_graph.search import compiled_search, compiler_installed, library_search, pack, preferred_search, sorted_edges
from janus_graph.testing import brute_force_neighbor_list

PAIRS = functools.partial(compiled_search, most_by_pairs=10**6)
BINS = functools.partial(compiled_search, most_by_pairs=0)
SEARCHES = {"pairs": PAIRS, "bins": BINS, "library": library_search}


def assert_same(found, expected):
    for field in dataclasses.fields(expected):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name), strict=True)


@st.composite
def larger_structures(draw):
    """Up to 100 atoms, any periodicity, cells from flat to long, some atoms far outside."""
    rng = np.random.default_rng(draw(seeds))
    atoms = draw(st.sampled_from([1, 3, 20, 100]))
    periodic = np.array(draw(st.lists(st.booleans(), min_size=3, max_size=3)))
    cell = np.eye(3) + rng.uniform(-0.3, 0.3, size=(3, 3))
    cell *= draw(st.sampled_from([(1, 1, 1), (0.5, 1, 2), (2, 2, 0.3)])) * np.array(10.0 * (atoms / 80) ** (1 / 3))
    cell[rng.permutation(3)[0]] *= draw(st.sampled_from([1, -1]))
    positions = rng.uniform(size=(atoms, 3)) @ cell
    far = draw(st.sampled_from([0, 1, 1000]))
    positions += (rng.integers(-far, far + 1, size=(atoms, 3)) * periodic) @ cell
    return Structure(rng.choice([6, 8], size=atoms), positions, cell, periodic)


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
@given(structure=structures(), cutoff=cutoffs)
def test_edges_lengths_and_reverses_are_those_of_the_double_loop_to_the_last_bit(search, structure, cutoff):
    assert_same(neighbor_list(structure, cutoff, search), brute_force_neighbor_list(structure, cutoff))


@given(structure=larger_structures(), cutoff=st.sampled_from([1.0, 2.5, 4.0]))
def test_searches_of_larger_structures_agree_to_the_last_bit(structure, cutoff):
    expected = neighbor_list(structure, cutoff, library_search)
    assert_same(neighbor_list(structure, cutoff, PAIRS), expected)
    assert_same(neighbor_list(structure, cutoff, BINS), expected)


@given(structure=larger_structures(), seed=seeds)
def test_searches_agree_about_a_neighbour_exactly_at_the_cutoff(structure, seed):
    lengths = neighbor_list(structure, 3.5).distance
    lengths = lengths[lengths > 0.5]
    if len(lengths):
        at = float(np.random.default_rng(seed).choice(lengths))
        for search in SEARCHES.values():
            assert not (neighbor_list(structure, at, search).distance >= at).any()
            assert (neighbor_list(structure, np.nextafter(at, np.inf), search).distance == at).sum() >= 2


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
@given(drawn=st.lists(structures(), max_size=4), cutoff=cutoffs)
def test_lists_made_together_are_those_made_one_by_one(search, drawn, cutoff):
    together = neighbor_lists(drawn, cutoff, search)
    assert len(together) == len(drawn)
    for structure, listed in zip(drawn, together, strict=True):
        assert_same(listed, neighbor_list(structure, cutoff, search))


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
@given(drawn=st.lists(structures(), min_size=1, max_size=4), cutoff=cutoffs, seed=seeds)
def test_lists_follow_the_order_of_a_batch(search, drawn, cutoff, seed):
    order = np.random.default_rng(seed).permutation(len(drawn)).tolist()
    before = neighbor_lists(drawn, cutoff, search)
    for place, listed in zip(order, neighbor_lists([drawn[place] for place in order], cutoff, search), strict=True):
        assert_same(listed, before[place])


@given(drawn=st.lists(structures(), min_size=1, max_size=4), cutoff=cutoffs, seed=seeds)
def test_edges_are_found_under_the_names_that_atoms_are_given(drawn, cutoff, seed):
    order = np.random.default_rng(seed).permutation(sum(len(structure) for structure in drawn))
    packed = pack_in_order(drawn, order)
    expected = library_search(packed, cutoff)
    assert_same(PAIRS(packed, cutoff), expected)
    assert_same(BINS(packed, cutoff), expected)
    given_names = library_search(pack(drawn), cutoff)
    place = np.argsort(order)
    assert_same(expected, sorted_edges(place[given_names.index], given_names.shift, given_names.distance))


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
def test_shifts_too_large_for_one_sorting_key_are_sorted_all_the_same(search):
    far = 2_000_000.0
    positions = np.array([[0.0, 0.0, 0.0], [far, 0.25, far], [0.5, far, -far], [-far, 0.5, 0.25]])
    structure = Structure([1, 1, 1, 1], positions, np.eye(3), [True] * 3)
    assert_same(neighbor_list(structure, 1.5, search), neighbor_list(structure, 1.5, PAIRS))
    assert np.ptp(neighbor_list(structure, 1.5, search).shift, axis=0).astype(float).prod() > 2.0**63


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
def test_an_empty_wide_box_costs_no_memory(search):
    positions = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [3e5, 2e5, 1e5]])
    for periodic, cell in (([False] * 3, np.zeros((3, 3))), ([True] * 3, 1e6 * np.eye(3))):
        assert len(neighbor_list(Structure([1, 1, 1], positions, cell, periodic), 2.0, search)) == 2


def test_room_for_edges_grows_when_atoms_are_denser_than_foreseen():
    positions = np.random.default_rng(0).uniform(size=(90, 3))
    crowded = Structure(np.ones(90), positions, np.zeros((3, 3)), [False] * 3)
    for search in SEARCHES.values():
        assert len(neighbor_list(crowded, 5.0, search)) == 90 * 89


def test_the_compiled_search_is_preferred_where_it_is_installed():
    assert compiler_installed()
    assert preferred_search() is compiled_search


def run(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env={**environment} or None
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_does_not_import_the_compiler():
    assert run("import sys, janus_graph; print('numba' in sys.modules)") == "False"


def test_everything_works_without_a_compiler():
    program = (
        "import sys\n"
        "sys.modules['numba'] = None  # as if it were not installed\n"
        "import janus_graph\n"
        "from janus_graph.search import library_search, preferred_search\n"
        "from janus_graph.testing import check_neighbor_list, sample_structures\n"
        "assert preferred_search() is library_search\n"
        "metal = sample_structures()['metal']\n"
        "check_neighbor_list(janus_graph.neighbor_list, [metal])\n"
        "cache = janus_graph.GraphCache(3.0, 2.0, 0.3)\n"
        "graphs = [cache.graph(metal), cache.graph(metal), janus_graph.build_graph([metal], 3.0, 2.0)]\n"
        "print(len({graph.edges for graph in graphs}), cache.rebuilds)\n"
    )
    assert run(program) == "1 2"


def test_a_function_is_compiled_also_where_nothing_can_be_kept_on_disk():
    program = (
        "from janus_graph.search.compiled import compiled\n"
        "source = 'def double(x):\\n    return 2 * x\\n'\n"
        "space = {}\n"
        "exec(compile(source, '<nowhere>', 'exec'), space)  # no file: numba has no place to keep the code\n"
        "print(compiled(space['double'])(21))\n"
    )
    assert run(program) == "42"
