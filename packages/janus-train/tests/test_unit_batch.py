"""Shares of a unit's batch: every atom and every label once, and rows of all ranks known to each."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_graph import Structure
from janus_train.data.ahead import ahead
from janus_train.data.batch import FrameSource
from janus_train.data.frame import Frame
from janus_train.data.unit_batch import SmallParts, unit_batch


def frame(atoms: int, seed: int) -> Frame:
    rng = np.random.default_rng(seed)
    positions = np.stack(np.meshgrid(np.arange(atoms), [0], [0], indexing="ij"), -1).reshape(-1, 3) * 2.0
    structure = Structure(rng.choice([1, 6, 8], atoms), positions, np.zeros((3, 3)), [False] * 3)
    return Frame(structure, "test", energy=float(seed), forces=rng.normal(size=(atoms, 3)), origin=f"frame {seed}")


def source_of(sizes: list[int]) -> FrameSource:
    return FrameSource([frame(size, seed) for seed, size in enumerate(sizes)], 3.0, 2.5)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 5), st.booleans())
def test_every_atom_label_and_row_is_on_one_rank_and_known_to_all(sizes, ranks, idle):
    source = source_of(sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallParts)
        shares = [unit_batch(source, range(len(sizes)), rank, ranks, idle) for rank in range(ranks)]
    forces = [[] for _ in sizes]
    counted = np.zeros(len(sizes), dtype=int)
    for rank, share in enumerate(shares):
        graph, batch = share.batch.graph, share.batch
        for atom, structure in enumerate(graph.structure_index.tolist()):
            forces[share.places[structure]].append(tuple(batch.forces[atom].tolist()))
        counted[list(share.places)] += share.counted.numpy()
        for table in ("atom_rows", "edge_rows"):
            np.testing.assert_array_equal(getattr(share, table), getattr(shares[0], table))
        np.testing.assert_array_equal(np.bincount(graph.atomic_numbers.numpy(), minlength=119), share.atom_rows[rank])
        assert dict(zip(graph.elements, graph.edges_per_element, strict=True)) == {
            z: share.edge_rows[rank, z] for z in graph.elements
        }
        for other, sent in enumerate(share.part.send_rows):
            assert len(sent) == shares[other].part.receive_counts[rank]
    expected = [[] if idle else sorted(map(tuple, one.forces.tolist())) for one in source.frames]
    assert [sorted(found) for found in forces] == expected
    assert (counted == (0 if idle else 1)).all()


def test_structures_are_cut_only_where_ranks_would_wait_and_a_warning_says_when_parts_are_small():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert unit_batch(source_of([9, 10]), [0, 1], 0, 2).cut == 0
    with pytest.warns(SmallParts, match="frame 0: 30 atoms are cut into 2 parts"):
        assert unit_batch(source_of([30]), [0], 0, 2).cut == 1


def test_what_is_prepared_ahead_comes_in_order_with_errors_where_they_belong():
    assert list(ahead([], lambda item: item)) == []
    assert list(ahead(range(4), lambda item: item**2)) == [(0, 0), (1, 1), (2, 4), (3, 9)]
    batches = ahead([2, 0, 1], lambda item: 1 / item)
    assert next(batches) == (2, 0.5)
    with pytest.raises(ZeroDivisionError):
        next(batches)
