import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_strategies import cutoffs, structures
from janus_graph import near_pairs
from janus_graph.packing import CostModel, StructureSizes, share_out, structure_sizes
from janus_graph.search import compiled_search, library_search
from janus_graph.testing import brute_force_neighbor_list, sample_structures

items = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=40)


@given(st.lists(structures(), max_size=3), cutoffs, st.sampled_from([0.5, 1.0]),
       st.sampled_from([compiled_search, library_search]))  # fmt: skip
def test_sizes_are_those_of_the_naive_list(drawn, cutoff, fraction, search):
    sizes = structure_sizes(drawn, cutoff, fraction * cutoff, search)
    lists = [brute_force_neighbor_list(structure, cutoff) for structure in drawn]
    assert sizes.atoms.tolist() == [len(structure) for structure in drawn]
    assert sizes.edges.tolist() == [len(listed) for listed in lists]
    assert sizes.near_pairs.tolist() == [
        near_pairs(listed.centre, listed.distance < fraction * cutoff).shape[1] for listed in lists
    ]
    assert sizes.elements.tolist() == [len(set(structure.atomic_numbers.tolist())) for structure in drawn]


def test_sizes_do_not_depend_on_how_many_structures_are_measured_at_a_time():
    samples = list(sample_structures().values())
    many = structure_sizes(samples * 300, 3.0, 2.0)
    alone = structure_sizes(samples, 3.0, 2.0)
    assert many.atoms.sum() > 4096
    np.testing.assert_array_equal(many.edges, np.tile(alone.edges, 300))
    np.testing.assert_array_equal(many.near_pairs, np.tile(alone.near_pairs, 300))


def test_a_cost_is_the_sum_of_what_there_is():
    sizes = StructureSizes(*(np.array([n, 0]) for n in (2, 3, 5, 7)))
    assert CostModel(edge=100, near_pair=10, atom=1, element=1000)(sizes).tolist() == [2 + 300 + 50 + 7000, 0]
    assert CostModel(edge=1, near_pair=0, atom=0, element=0)(sizes).tolist() == [3, 0]


@given(items, st.integers(1, 9))
def test_every_item_goes_to_exactly_one_rank(drawn, ranks):
    shares = share_out([cost for cost, _ in drawn], [atoms for _, atoms in drawn], ranks)
    assert len(shares) == ranks
    assert sorted(item for share in shares for item in share) == list(range(len(drawn)))


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 9))
def test_without_atoms_to_watch_no_rank_is_far_above_the_mean(costs, ranks):
    shares = share_out(costs, [0] * len(costs), ranks)
    loads = [sum(costs[item] for item in share) for share in shares]
    # Graham's bound: the last item of the fullest rank was put where the load was lowest, so at most the mean.
    assert max(loads) <= sum(costs) / ranks + max(costs, default=0)


@given(items, st.integers(1, 9))
def test_no_rank_has_many_more_atoms_than_the_mean(drawn, ranks):
    atoms = [count for _, count in drawn]
    shares = share_out([cost for cost, _ in drawn], atoms, ranks)
    held = [sum(atoms[item] for item in share) for share in shares]
    # What does not fit goes where there are fewest atoms, so at most the mean.
    assert max(held) <= max(1.2 * sum(atoms) / ranks, sum(atoms) / ranks + max(atoms, default=0))


def test_atoms_are_shared_out_even_where_only_a_few_structures_cost_anything():
    costs, atoms = [100] * 4 + [0] * 40, [1] * 4 + [10] * 40
    shares = share_out(costs, atoms, 4)
    assert [sum(costs[item] for item in share) for share in shares] == [100] * 4
    assert max(sum(atoms[item] for item in share) for share in shares) <= 1.2 * sum(atoms) / 4


@pytest.mark.parametrize("ranks", [8, 64])
def test_forty_structures_a_rank_of_very_different_sizes_cost_every_rank_the_same(ranks):
    rng = np.random.default_rng(0)
    atoms = np.clip(rng.lognormal(3.2, 0.7, 40 * ranks), 1, 300).astype(int)
    edges = (atoms * rng.uniform(30, 110, len(atoms))).astype(int)
    sizes = StructureSizes(atoms, edges, (edges * rng.uniform(5, 30, len(atoms))).astype(int), np.minimum(atoms, 5))
    costs = CostModel()(sizes)
    loads = [costs[share].sum() for share in share_out(costs.tolist(), atoms.tolist(), ranks)]
    assert max(loads) <= 1.02 * np.mean(loads)
