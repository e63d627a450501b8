"""How a graph is split over ranks changes nothing. Ranks are simulated: ghost rows come from the whole graph."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_graph import Structure, build_graph, strained
from janus_graph.parts import graph_part
from matris_model.testing.parts import takes_a_halo
from model_cases import TINY, molecule, random_structure, stirred, structures

MODEL = stirred()


def energies_of_parts(graph, owner, ranks):
    """Energies of the whole, and the energies that each part finds with ghost rows from the whole."""
    exchanged = []

    def record(rows):
        exchanged.append(rows)
        return rows

    whole, _ = MODEL.energies(graph, halo=record)
    parts = []
    for rank in range(ranks):
        part = graph_part(graph, np.array(owner), rank, ranks)
        calls = iter(exchanged)

        def halo(rows, calls=calls, part=part):
            of_whole = next(calls)
            torch.testing.assert_close(rows, of_whole[torch.from_numpy(part.owned)], rtol=1e-10, atol=1e-10)
            return torch.cat([rows, of_whole[torch.from_numpy(part.ghosts)]])

        parts.append(MODEL.energies(part.graph, halo=halo)[0])
        assert next(calls, None) is None
    return whole, parts


@given(st.lists(structures, min_size=1, max_size=2), st.integers(1, 4), st.integers(0, 1000))
def test_energies_forces_and_strain_gradients_do_not_depend_on_the_split(batch, ranks, seed):
    graph = build_graph(batch, TINY.cutoff, TINY.near_cutoff)
    rank_of_atom = np.random.default_rng(seed).integers(0, ranks, size=graph.atoms)
    positions = graph.positions.clone().requires_grad_()
    strain = torch.zeros_like(graph.cells, requires_grad=True)
    deformed = strained(graph.replace(positions=positions), strain)
    whole, parts = energies_of_parts(deformed, rank_of_atom, ranks)
    split = torch.stack(parts).sum(0)
    torch.testing.assert_close(split, whole, rtol=1e-11, atol=1e-11)
    # Ghost rows keep their history, so the parts' sum is differentiated through every exchange.
    for found, expected in zip(
        torch.autograd.grad(split.sum(), (positions, strain), retain_graph=True),
        torch.autograd.grad(whole.sum(), (positions, strain)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_law_of_split_graphs_concerns_the_model():
    assert takes_a_halo(MODEL)
    assert not takes_a_halo(lambda graph, properties: None)


def test_a_rank_without_atoms_has_no_energy():
    graph = build_graph([molecule([8, 1], [[0, 0, 0], [0, 0, 1]])], TINY.cutoff, TINY.near_cutoff)
    whole, (everything, nothing) = energies_of_parts(graph, [0, 0], 2)
    assert torch.equal(nothing, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(everything, whole, rtol=1e-13, atol=1e-13)
    assert nothing.requires_grad
    gradients = torch.autograd.grad(nothing.sum(), list(MODEL.parameters()), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)


def test_only_rows_of_neighbours_are_exchanged_once_a_block():
    graph = build_graph([random_structure(1, 4, (2, 2, 1), (True, True, True))], TINY.cutoff, TINY.near_cutoff)
    shapes = []

    def record(rows):
        shapes.append(tuple(rows.shape))
        return rows

    MODEL.energies(graph, halo=record)
    assert shapes == [(4, 3)] + [(4, TINY.width)] * TINY.blocks


@pytest.mark.parametrize("task", [0, 1])
def test_every_part_adds_the_reference_energies_of_its_own_atoms(task):
    far = Structure(
        np.array([8, 26]), np.array([[0.0, 0, 0], [50, 0, 0]]), np.zeros((3, 3)), np.array([False] * 3), task=task
    )
    changed = stirred()
    graph = build_graph([far], TINY.cutoff, TINY.near_cutoff)
    iron = graph_part(graph, np.array([0, 1]), 1, 2).graph
    before = changed.energies(iron)[0]
    changed.references[task, 8] += 5.0
    torch.testing.assert_close(changed.energies(iron)[0], before, rtol=0, atol=0)
    changed.references[task, 26] += 2.0
    torch.testing.assert_close(changed.energies(iron)[0], before + 2.0, rtol=1e-13, atol=0)
