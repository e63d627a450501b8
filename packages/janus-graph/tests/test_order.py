import dataclasses

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from graph_strategies import cutoffs, seeds, structures
from janus_graph import Structure, build_graph
from janus_graph.order import atom_order, space_filling_index


def grid(points, seed):
    """A simple cubic crystal of two elements with its atoms in random order."""
    rng = np.random.default_rng(seed)
    places = rng.permutation(np.stack(np.meshgrid(*[np.arange(points)] * 3), axis=-1).reshape(-1, 3))
    elements = np.where(rng.random(len(places)) < 0.5, 12, 8)
    return Structure(elements, 2.0 * places, 2.0 * points * np.eye(3), [True] * 3)


@given(st.lists(structures(), min_size=1, max_size=4))
def test_the_order_holds_every_atom_once_by_element_then_structure(drawn):
    order = atom_order(drawn)
    numbers = np.concatenate([structure.atomic_numbers for structure in drawn])
    owner = np.repeat(np.arange(len(drawn)), [len(structure) for structure in drawn])
    assert sorted(order.tolist()) == list(range(len(numbers)))
    keys = list(zip(numbers[order].tolist(), owner[order].tolist(), order.tolist(), strict=True))
    assert keys == sorted(keys)


def test_large_structures_keep_elements_and_structures_apart_too():
    drawn = [grid(3, 0), grid(9, 1), grid(2, 2)]
    order = atom_order(drawn)
    numbers = np.concatenate([structure.atomic_numbers for structure in drawn])
    owner = np.repeat(np.arange(len(drawn)), [len(structure) for structure in drawn])
    keys = list(zip(numbers[order].tolist(), owner[order].tolist(), strict=True))
    assert keys == sorted(keys)
    assert sorted(order.tolist()) == list(range(len(numbers)))


@given(structures(), seeds)
def test_the_place_along_the_curve_does_not_depend_on_the_cell_an_atom_is_in(structure, seed):
    steps = np.random.default_rng(seed).integers(-3, 4, size=(len(structure), 3)) * structure.periodic
    if structure.periodic.all() and (structure.positions % 0.25 == 0).all():
        wrapped = dataclasses.replace(structure, positions=structure.positions + steps @ structure.cell)
        # A coordinate on the border of two steps may fall on either side; the highest bits are far from it.
        before, after = (space_filling_index(s) // 2**36 for s in (structure, wrapped))
        assert (np.abs(before - after) <= 2**12).all()
    assert (space_filling_index(structure) >= 0).all()
    assert (space_filling_index(structure) < 2**48).all()


def test_points_of_a_grid_come_in_the_order_of_their_interleaved_bits():
    structure = grid(8, 0)
    places = (structure.positions / 2.0).astype(int)
    interleaved = [
        sum(((place[axis] >> bit) & 1) << (3 * bit + 2 - axis) for bit in range(3) for axis in range(3))
        for place in places.tolist()
    ]
    assert np.argsort(space_filling_index(structure)).tolist() == np.argsort(interleaved).tolist()


def test_neighbours_are_near_each_other_in_memory():
    drawn = grid(12, 3)
    graph = build_graph([dataclasses.replace(drawn, atomic_numbers=np.full(len(drawn), 29))], 2.1, 2.1)
    centre, neighbour = graph.edge_index
    # In random order the median distance of two atoms in memory is 0.29 times their number.
    assert (centre - neighbour).abs().median() < 0.02 * graph.atoms
    assert torch.equal(graph.in_input_order(graph.positions), torch.from_numpy(drawn.positions))


@given(st.lists(structures(), min_size=1, max_size=4), cutoffs)
def test_reverse_edges_of_a_graph_lead_back(drawn, cutoff):
    graph = build_graph(drawn, cutoff, cutoff)
    reverse = graph.reverse_edge
    assert torch.equal(graph.edge_index[:, reverse], graph.edge_index.flip(0))
    assert torch.equal(graph.edge_shifts[reverse], -graph.edge_shifts)
    assert torch.equal(reverse[reverse], torch.arange(graph.edges))


def test_a_graph_with_other_edges_has_no_reverse_edges_unless_they_are_given():
    graph = build_graph([grid(3, 0)], 2.1, 2.1)
    part = graph.replace(edge_index=graph.edge_index[:, :4], edge_shifts=graph.edge_shifts[:4])
    assert part.reverse_edge is None
    assert part.to("cpu").reverse_edge is None
    kept = graph.replace(edge_index=graph.edge_index.clone(), reverse_edge=graph.reverse_edge)
    assert kept.reverse_edge is graph.reverse_edge
