"""Every atom has one owner, work is even, and parts know exactly their neighbours and who needs their own atoms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graph_strategies import spaced_structures
from janus_graph import Structure, build_graph, edge_vectors
from janus_graph.packing import CostModel, structure_sizes
from janus_graph.partition import atom_work, partition_atoms
from janus_graph.parts import graph_part

CUTOFF = 3.0
batches = st.lists(spaced_structures(), min_size=1, max_size=4)
part_counts = st.integers(1, 6)


def crystal(repeats: tuple[int, int, int], spacing: float = 2.5, periodic: bool = True) -> Structure:
    """A simple cubic crystal of two elements, its atoms in no order."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*map(np.arange, repeats), indexing="ij"), -1).reshape(-1, 3)
    positions = rng.permutation(grid) * spacing + rng.normal(0, 0.05, grid.shape)
    return Structure(rng.choice([8, 26], len(grid)), positions, np.diag(repeats) * spacing, np.full(3, periodic))


def random_work(structures, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 10, len(structure)) for structure in structures]


def cut(structures, owners, parts):
    """The whole graph of a batch and all of its parts."""
    graph = build_graph(structures, CUTOFF, CUTOFF / 2)
    owner = np.concatenate(owners)[graph.input_index.numpy()]
    return graph, owner, [graph_part(graph, owner, part, parts) for part in range(parts)]


@given(batches, part_counts, st.integers(0, 100))
def test_every_atom_has_one_owner_and_all_ranks_agree(structures, parts, seed):
    work = random_work(structures, seed)
    owners = partition_atoms(structures, work, parts, CUTOFF)
    assert [len(owner) for owner in owners] == [len(structure) for structure in structures]
    assert all(((owner >= 0) & (owner < parts)).all() for owner in owners)
    again = partition_atoms(structures, [own.copy() for own in work], parts, CUTOFF)
    assert all((a == b).all() for a, b in zip(owners, again, strict=True))


@given(st.tuples(*[st.integers(1, 7)] * 3), st.integers(1, 9), st.integers(0, 100), st.booleans())
def test_work_is_even_up_to_an_atom_a_cut(repeats, parts, seed, periodic):
    structures = [crystal(repeats, periodic=periodic), crystal((2, 1, 1))]
    work = random_work(structures, seed)
    total = np.zeros(parts, dtype=np.int64)
    for owner, own in zip(partition_atoms(structures, work, parts, CUTOFF), work, strict=True):
        np.add.at(total, owner, own)
    largest = max(int(own.max(initial=0)) for own in work)
    assert total.max() <= total.mean() * (1 + 1 / 256) + (1 + math.ceil(math.log2(parts))) * largest + 1


@given(batches)
def test_work_of_atoms_adds_up_to_the_cost_of_structures(structures):
    graph = build_graph(structures, CUTOFF, CUTOFF / 2)
    cost = CostModel(element=0)
    expected = cost(structure_sizes(structures, CUTOFF, CUTOFF / 2))
    found = np.bincount(graph.structure_index.numpy(), atom_work(graph, cost), minlength=len(structures))
    assert found.tolist() == expected.tolist()


def test_structures_stay_whole_where_work_is_even_without_a_cut():
    structures = [crystal((2, 2, 2))] * 8
    owners = partition_atoms(structures, [np.ones(8, dtype=int)] * 8, 4, CUTOFF)
    assert all(len(set(owner.tolist())) == 1 for owner in owners)
    assert np.bincount([owner[0] for owner in owners]).tolist() == [2, 2, 2, 2]


def test_only_the_structure_that_is_too_large_is_cut():
    structures = [crystal((6, 4, 4)), crystal((2, 2, 2)), crystal((2, 2, 2)), crystal((2, 2, 2)), crystal((2, 2, 2))]
    owners = partition_atoms(structures, [np.ones(len(s), dtype=int) for s in structures], 4, CUTOFF)
    assert len(set(owners[0].tolist())) > 1
    assert all(len(set(owner.tolist())) == 1 for owner in owners[1:])
    assert np.bincount(np.concatenate(owners)).tolist() == [32, 32, 32, 32]


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("long_axis", [0, 1, 2])
def test_a_bar_is_cut_into_slices(long_axis, periodic):
    repeats = [3, 3, 3]
    repeats[long_axis] = 40
    bar = crystal(tuple(repeats), periodic=periodic)
    (owner,) = partition_atoms([bar], [np.ones(len(bar), dtype=int)], 4, CUTOFF)
    _, _, parts = cut([bar], [owner], 4)
    for part in parts:
        # Each side of a slice is one layer of nine atoms.
        ends = np.count_nonzero(part.receive_counts)
        assert ends <= 2
        assert len(part.ghosts) == 9 * ends


@given(batches, part_counts, st.integers(0, 100))
def test_ghosts_are_the_neighbours_that_others_own_each_once(structures, parts, seed):
    rng = np.random.default_rng(seed)
    owners = [rng.integers(0, parts, len(structure)) for structure in structures]
    graph, owner, found = cut(structures, owners, parts)
    for number, part in enumerate(found):
        needed = {
            neighbour
            for centre, neighbour in graph.edge_index.T.tolist()
            if owner[centre] == number and owner[neighbour] != number
        }
        assert sorted(part.ghosts.tolist()) == sorted(needed)
        assert part.owned.tolist() == [atom for atom in range(graph.atoms) if owner[atom] == number]


@given(batches, part_counts, st.integers(0, 100))
def test_what_one_part_sends_is_what_the_other_expects(structures, parts, seed):
    rng = np.random.default_rng(seed)
    _, owner, found = cut(structures, [rng.integers(0, parts, len(s)) for s in structures], parts)
    for sender in range(parts):
        for receiver in range(parts):
            sent = found[sender].owned[found[sender].send_rows[receiver]]
            ghosts = found[receiver].ghosts
            assert sent.tolist() == ghosts[owner[ghosts] == sender].tolist()
            assert found[receiver].receive_counts[sender] == len(sent)


@given(batches, part_counts, st.integers(0, 100))
def test_edges_of_all_parts_are_those_of_the_whole_bit_for_bit(structures, parts, seed):
    rng = np.random.default_rng(seed)
    graph, owner, found = cut(structures, [rng.integers(0, parts, len(s)) for s in structures], parts)
    whole = edge_vectors(graph)
    for number, part in enumerate(found):
        ghosts = graph.positions[torch.from_numpy(part.ghosts)]
        vectors = edge_vectors(part.graph, lambda rows, ghosts=ghosts: torch.cat([rows, ghosts]))
        kept = torch.from_numpy(owner[graph.edge_index[0].numpy()] == number)
        assert torch.equal(vectors, whole[kept])
        assert torch.equal(part.graph.neighbour_numbers, graph.neighbour_numbers[kept])
        assert sum(part.graph.edges_per_element) == part.graph.edges == int(kept.sum())
        assert sum(part.graph.atoms_per_element) == part.graph.atoms == len(part.owned)
        near = torch.zeros(graph.edges, dtype=torch.bool)
        near[graph.near.edges.long()] = True
        assert part.graph.near.edges.tolist() == torch.nonzero(near[kept]).flatten().tolist()
    assert sum(part.graph.near.pairs for part in found) == graph.near.pairs


def test_there_may_be_more_parts_than_atoms():
    atom = Structure([1], np.zeros((1, 3)), np.zeros((3, 3)), [False] * 3)
    owners = partition_atoms([atom], [np.array([5])], 3, CUTOFF)
    graph, _, parts = cut([atom], owners, 3)
    assert sorted(part.graph.atoms for part in parts) == [0, 0, 1]
    assert all(part.graph.structures == graph.structures for part in parts)


def test_atoms_without_work_and_atoms_at_one_place_have_owners():
    stacked = Structure([1] * 6, np.zeros((6, 3)), np.eye(3) * 9, [True] * 3)
    for work in (np.zeros(6, dtype=int), np.ones(6, dtype=int)):
        (owner,) = partition_atoms([stacked], [work], 3, CUTOFF)
        assert len(owner) == 6
    assert np.bincount(owner).tolist() == [2, 2, 2]


def test_what_does_not_fit_is_refused():
    structure = crystal((2, 2, 2))
    with pytest.raises(ValueError, match="into 0 parts"):
        partition_atoms([structure], [np.ones(8, dtype=int)], 0, CUTOFF)
    with pytest.raises(ValueError, match=r"structure 0 has 8 atoms, but its work is \(7,\) numbers"):
        partition_atoms([structure], [np.ones(7, dtype=int)], 2, CUTOFF)
    graph = build_graph([structure], CUTOFF, CUTOFF)
    with pytest.raises(ValueError, match="parts are 0 to 1"):
        graph_part(graph, np.full(8, 2), 0, 2)
    with pytest.raises(ValueError, match="give one part an atom"):
        graph_part(graph, np.zeros(7, dtype=int), 0, 2)
    part = graph_part(graph, np.arange(8) % 2, 0, 2)
    with pytest.raises(ValueError, match="a part of a graph"):
        graph_part(part.graph, np.zeros(4, dtype=int), 0, 1)


def porous_framework(pores: int = 2) -> Structure:
    """Struts along the edges of a cubic net, with nothing between them."""
    rng = np.random.default_rng(0)
    period = 10
    grid = np.stack(np.meshgrid(*[np.arange(pores * period)] * 3, indexing="ij"), -1).reshape(-1, 3)
    struts = grid[(grid % period < 2).sum(1) >= 2]
    positions = struts * 2.5 + rng.normal(0, 0.05, struts.shape)
    return Structure(np.full(len(struts), 14), positions, np.eye(3) * pores * period * 2.5, [True] * 3)


def ghosts_of(graph, owner, parts):
    return sum(len(graph_part(graph, owner, part, parts).ghosts) for part in range(parts))


def test_metis_finds_smaller_halos_in_porous_frameworks_and_no_smaller_work():
    metis = pytest.importorskip("janus_graph.metis")
    structure, parts = porous_framework(), 16
    graph = build_graph([structure], CUTOFF, CUTOFF / 2)
    work = atom_work(graph, CostModel())
    owner = metis.partition_by_metis(graph, work, parts)
    assert owner.tolist() == metis.partition_by_metis(graph, work, parts).tolist()
    total = np.bincount(owner, work, minlength=parts)
    assert total.max() <= 1.04 * total.mean() + work.max()
    (planes,) = partition_atoms([structure], [graph.in_input_order(torch.from_numpy(work)).numpy()], parts, CUTOFF)
    assert ghosts_of(graph, owner, parts) < ghosts_of(graph, planes[graph.input_index.numpy()], parts)


@given(batches, part_counts)
def test_metis_gives_every_atom_a_part_also_where_there_are_few(structures, parts):
    metis = pytest.importorskip("janus_graph.metis")
    graph = build_graph(structures, CUTOFF, CUTOFF / 2)
    owner = metis.partition_by_metis(graph, atom_work(graph, CostModel()), parts)
    assert owner.shape == (graph.atoms,)
    assert 0 <= owner.min() <= owner.max() < parts
    with pytest.raises(ValueError, match="into 0 parts"):
        metis.partition_by_metis(graph, atom_work(graph, CostModel()), 0)
