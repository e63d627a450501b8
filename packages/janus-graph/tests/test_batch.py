import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graph_strategies import batches, cutoffs, seeds, structures
from janus_graph import AtomGraph, EdgeTables, Structure, build_graph, edge_vectors, near_pairs, neighbor_list
from janus_graph.lennard_jones import LennardJones
from janus_graph.testing import sample_structures

EVERYTHING = ("energy", "forces", "stress")
any_batch = st.lists(structures(), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def potential():
    return LennardJones(epsilon=0.2, sigma=1.4, cutoff=4.0)


def graph_of(drawn, potential):
    return build_graph(drawn, potential.cutoff, potential.near_cutoff)


def tensors_of(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple):
        return [tensor for part in value for tensor in tensors_of(part)]
    if dataclasses.is_dataclass(value):
        return [t for field in dataclasses.fields(value) for t in tensors_of(getattr(value, field.name))]
    return []


@given(drawn=batches)
def test_properties_of_a_batch_are_those_of_its_structures(potential, drawn):
    graph = graph_of(drawn, potential)
    together = potential(graph, EVERYTHING)
    alone = [(potential(single, EVERYTHING), single) for single in (graph_of([s], potential) for s in drawn)]
    torch.testing.assert_close(together.energy, torch.cat([values.energy for values, _ in alone]))
    torch.testing.assert_close(together.stress, torch.cat([values.stress for values, _ in alone]))
    torch.testing.assert_close(
        graph.in_input_order(together.forces), torch.cat([single.in_input_order(v.forces) for v, single in alone])
    )


@given(drawn=batches, seed=seeds)
def test_the_order_of_a_batch_orders_its_energies_and_nothing_else(potential, drawn, seed):
    order = np.random.default_rng(seed).permutation(len(drawn)).tolist()
    before = potential(graph_of(drawn, potential), ("energy",)).energy
    after = potential(graph_of([drawn[i] for i in order], potential), ("energy",)).energy
    torch.testing.assert_close(after, before[order])


@given(drawn=batches, seed=seeds)
def test_the_order_of_atoms_orders_their_forces_and_nothing_else(potential, drawn, seed):
    structure = drawn[0]
    order = np.random.default_rng(seed).permutation(len(structure))
    permuted = dataclasses.replace(
        structure, atomic_numbers=structure.atomic_numbers[order], positions=structure.positions[order]
    )
    graph, other = graph_of([structure], potential), graph_of([permuted], potential)
    before, after = potential(graph, EVERYTHING), potential(other, EVERYTHING)
    torch.testing.assert_close(after.energy, before.energy)
    torch.testing.assert_close(after.stress, before.stress)
    torch.testing.assert_close(other.in_input_order(after.forces), graph.in_input_order(before.forces)[order.tolist()])


@given(drawn=any_batch, cutoff=cutoffs)
def test_atoms_are_sorted_by_element_and_elements_are_contiguous_slices(drawn, cutoff):
    graph = build_graph(drawn, cutoff, cutoff)
    by_count = np.repeat(graph.elements, graph.atoms_per_element)
    assert graph.atomic_numbers.tolist() == by_count.tolist()
    assert list(graph.elements) == sorted({int(number) for s in drawn for number in s.atomic_numbers})


@given(drawn=any_batch, cutoff=cutoffs)
def test_edges_are_contiguous_by_centre_and_by_element(drawn, cutoff):
    graph = build_graph(drawn, cutoff, cutoff)
    centre = graph.edge_index[0]
    assert (centre.diff() >= 0).all()
    by_count = np.repeat(graph.elements, graph.edges_per_element)
    assert graph.atomic_numbers[centre].tolist() == by_count.tolist()
    assert (graph.structure_index[centre] == graph.structure_index[graph.edge_index[1]]).all()


@given(drawn=any_batch, cutoff=cutoffs)
def test_edges_are_the_union_of_the_neighbour_lists(drawn, cutoff):
    graph = build_graph(drawn, cutoff, cutoff)
    expected, first = [], 0
    for structure in drawn:
        listed = neighbor_list(structure, cutoff)
        for i, j, shift in zip(listed.centre, listed.neighbour, listed.shift.tolist(), strict=True):
            expected.append((int(first + i), int(first + j), *shift))
        first += len(structure)
    centre, neighbour = graph.input_index[graph.edge_index]
    shifts = graph.edge_shifts.to(torch.int64).T
    assert sorted(zip(*(row.tolist() for row in (centre, neighbour, *shifts)), strict=True)) == sorted(expected)
    assert graph.edges == len(expected)


@given(drawn=any_batch)
def test_input_order_and_graph_order_are_each_others_inverse(drawn):
    graph = build_graph(drawn, 1.0, 1.0)
    rows = torch.arange(3 * graph.atoms).reshape(-1, 3)
    assert torch.equal(graph.in_input_order(graph.from_input_order(rows)), rows)
    assert torch.equal(graph.from_input_order(graph.in_input_order(rows)), rows)


@given(drawn=any_batch)
def test_atoms_and_labels_in_input_order_are_what_was_given(drawn):
    graph = build_graph(drawn, 1.0, 1.0)
    given_positions = np.concatenate([structure.positions for structure in drawn])
    given_numbers = np.concatenate([structure.atomic_numbers for structure in drawn])
    owner = [index for index, structure in enumerate(drawn) for _ in range(len(structure))]
    np.testing.assert_array_equal(graph.in_input_order(graph.positions), given_positions)
    np.testing.assert_array_equal(graph.in_input_order(graph.atomic_numbers), given_numbers)
    assert graph.in_input_order(graph.structure_index).tolist() == owner
    for index, structure in enumerate(drawn):
        np.testing.assert_array_equal(graph.cells[index], structure.cell)
        np.testing.assert_array_equal(graph.periodic[index], structure.periodic)
        labels = (int(graph.charges[index]), int(graph.spins[index]), int(graph.tasks[index]))
        assert labels == (structure.charge, structure.spin, structure.task)
    assert (graph.structures, graph.atoms) == (len(drawn), len(given_numbers))


@given(drawn=any_batch, cutoff=cutoffs)
def test_edges_know_the_elements_of_their_neighbours(drawn, cutoff):
    graph = build_graph(drawn, cutoff, cutoff)
    assert graph.neighbour_numbers.tolist() == graph.atomic_numbers[graph.edge_index[1]].tolist()


@given(drawn=any_batch)
def test_composition_is_the_fraction_of_each_element(drawn):
    graph = build_graph(drawn, 1.0, 1.0)
    expected = [[np.mean(structure.atomic_numbers == number) for number in range(119)] for structure in drawn]
    np.testing.assert_allclose(graph.composition, expected, rtol=1e-15)


@given(drawn=any_batch, cutoff=cutoffs, fraction=st.sampled_from([0.25, 0.5, 1.0]))
def test_three_body_pairs_are_those_of_edges_below_the_near_cutoff(drawn, cutoff, fraction):
    graph = build_graph(drawn, cutoff, fraction * cutoff)
    lists = [neighbor_list(structure, cutoff) for structure in drawn]
    expected = sum(near_pairs(edges.centre, edges.distance < fraction * cutoff).shape[1] for edges in lists)
    assert graph.near.pairs == expected
    lengths = edge_vectors(graph)[graph.near.edges].norm(dim=1)
    assert (lengths <= fraction * cutoff * (1 + 1e-12)).all()


@given(drawn=any_batch, cutoff=cutoffs)
def test_lists_made_before_give_the_same_graph(drawn, cutoff):
    fresh = build_graph(drawn, cutoff, cutoff)
    reused = build_graph(drawn, cutoff, cutoff, [neighbor_list(structure, cutoff) for structure in drawn])
    for one, other in zip(tensors_of(fresh), tensors_of(reused), strict=True):
        assert torch.equal(one, other)
    assert (fresh.elements, fresh.edges_per_element) == (reused.elements, reused.edges_per_element)


@given(drawn=any_batch)
def test_a_graph_shares_no_memory_with_its_structures(drawn):
    before = [(structure.positions.copy(), structure.cell.copy()) for structure in drawn]
    graph = build_graph(drawn, 1.0, 1.0)
    graph.positions.add_(1.0)
    graph.cells.add_(1.0)
    for structure, (positions, cell) in zip(drawn, before, strict=True):
        np.testing.assert_array_equal(structure.positions, positions)
        np.testing.assert_array_equal(structure.cell, cell)


@pytest.mark.parametrize("cutoff", [0.5, 5.5])
def test_moving_a_graph_moves_every_tensor_and_keeps_the_rest(cutoff):
    graph = build_graph(list(sample_structures().values()), cutoff, cutoff)
    moved = graph.to("meta")
    assert {tensor.device.type for tensor in tensors_of(moved)} == {"meta"}
    assert moved.device.type == "meta"
    assert len(tensors_of(moved)) == len(tensors_of(graph))
    for field in dataclasses.fields(AtomGraph):
        value = getattr(graph, field.name)
        if not isinstance(value, torch.Tensor | EdgeTables):
            assert getattr(moved, field.name) == value
    assert moved.near.pairs == graph.near.pairs
    for one, other in zip(tensors_of(graph), tensors_of(graph.to("cpu")), strict=True):
        assert torch.equal(one, other)


def test_replacing_a_field_leaves_the_graph_it_came_from():
    graph = build_graph(list(sample_structures().values()), 3.0, 2.0)
    doubled = graph.replace(positions=2 * graph.positions)
    assert torch.equal(doubled.positions, 2 * graph.positions)
    assert doubled.edge_index is graph.edge_index


def test_no_structures_make_no_graph():
    with pytest.raises(ValueError, match="at least one structure"):
        build_graph([], 3.0, 2.0)


@pytest.mark.parametrize("near_cutoff", [0.0, -1.0, 3.0001, float("nan")])
def test_a_near_cutoff_beyond_the_cutoff_or_not_above_zero_is_refused(near_cutoff):
    atom = Structure([1], np.zeros((1, 3)), np.zeros((3, 3)), [False] * 3)
    with pytest.raises(ValueError, match=r"near_cutoff is .* at most cutoff = 3\.0"):
        build_graph([atom], 3.0, near_cutoff)
