import numpy as np
import torch
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st

from graph_strategies import cutoffs, seeds, structures
from janus_graph import build_graph, edge_vectors, strained, volumes

any_batch = st.lists(structures(), min_size=1, max_size=3)


def small_strains(graph, seed):
    return 0.1 * torch.from_numpy(np.random.default_rng(seed).normal(size=(graph.structures, 3, 3)))


@given(drawn=any_batch, cutoff=cutoffs)
def test_edge_vectors_lead_from_the_centre_to_the_image_of_the_neighbour(drawn, cutoff):
    graph = build_graph(drawn, cutoff, cutoff)
    positions = np.concatenate([structure.positions for structure in drawn])
    vectors = edge_vectors(graph)
    assert vectors.shape == (graph.edges, 3)
    for edge in range(graph.edges):
        i, j = graph.input_index[graph.edge_index[:, edge]].tolist()
        cell = drawn[int(graph.structure_index[graph.edge_index[0, edge]])].cell
        expected = positions[j] + graph.edge_shifts[edge].numpy() @ cell - positions[i]
        np.testing.assert_allclose(vectors[edge], expected, rtol=1e-12, atol=1e-12)
    assert (vectors.norm(dim=1) <= cutoff * (1 + 1e-12)).all()


@given(drawn=any_batch, cutoff=cutoffs)
def test_edge_vectors_add_up_to_zero_over_a_structure(drawn, cutoff):
    graph = build_graph(drawn, cutoff, cutoff)
    owner = graph.structure_index[graph.edge_index[0]]
    total = torch.zeros(graph.structures, 3, dtype=torch.float64).index_add(0, owner, edge_vectors(graph))
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-13 * max(graph.edges, 1) * 10)


@given(drawn=any_batch, cutoff=cutoffs, seed=seeds)
def test_neighbours_behind_a_halo_are_as_far_as_neighbours_at_hand(drawn, cutoff, seed):
    graph = build_graph(drawn, cutoff, cutoff)
    # Some neighbours are read from ghost rows, in an order of their own.
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(graph.atoms))
    place = torch.argsort(order) + graph.atoms
    centre, neighbour = graph.edge_index
    is_ghost = torch.from_numpy(rng.random(graph.edges) < 0.5)
    split = graph.replace(edge_index=torch.stack([centre, torch.where(is_ghost, place[neighbour], neighbour)]))
    vectors = edge_vectors(split, halo=lambda rows: torch.cat([rows, rows[order]]))
    assert torch.equal(vectors, edge_vectors(graph))


@given(drawn=any_batch, cutoff=cutoffs, seed=seeds)
def test_a_strain_deforms_every_edge_vector_by_its_symmetric_part(drawn, cutoff, seed):
    graph = build_graph(drawn, cutoff, cutoff)
    strain = small_strains(graph, seed)
    symmetric = (strain + strain.mT) / 2
    vectors = edge_vectors(graph)
    per_edge = symmetric[graph.structure_index[graph.edge_index[0]]]
    expected = vectors + (vectors[:, None] @ per_edge)[:, 0]
    torch.testing.assert_close(edge_vectors(strained(graph, strain)), expected, rtol=1e-12, atol=1e-12)


@given(drawn=any_batch, seed=seeds)
def test_a_strain_without_a_symmetric_part_deforms_nothing(drawn, seed):
    graph = build_graph(drawn, 1.0, 1.0)
    strain = small_strains(graph, seed)
    deformed = strained(graph, strain - strain.mT)
    assert torch.equal(deformed.positions, graph.positions)
    assert torch.equal(deformed.cells, graph.cells)


@given(drawn=any_batch, seed=seeds)
def test_a_strain_multiplies_volumes_by_its_determinant(drawn, seed):
    graph = build_graph(drawn, 1.0, 1.0)
    strain = small_strains(graph, seed)
    factor = torch.linalg.det(torch.eye(3, dtype=torch.float64) + (strain + strain.mT) / 2).abs()
    torch.testing.assert_close(volumes(strained(graph, strain)), factor * volumes(graph), rtol=1e-10, atol=0)


@given(drawn=any_batch)
def test_volumes_are_positive_for_either_hand_and_zero_where_not_everything_repeats(drawn):
    found = volumes(build_graph(drawn, 1.0, 1.0))
    for structure, volume in zip(drawn, found.tolist(), strict=True):
        if structure.periodic.all():
            expected = Atoms(cell=structure.cell).get_volume()
            np.testing.assert_allclose(volume, expected, rtol=1e-10)
            assert volume > 0
        else:
            assert volume == 0
