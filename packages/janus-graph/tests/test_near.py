import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_graph import near_pairs, near_tables


@st.composite
def near_edges(draw):
    """Centres of edges, ascending, which of them are near, and the number of atoms; both may be zero."""
    counts = draw(st.lists(st.integers(0, 20), max_size=6))
    centre = np.repeat(np.arange(len(counts)), counts)
    near = np.array(draw(st.lists(st.booleans(), min_size=len(centre), max_size=len(centre))), dtype=bool)
    return centre, near, len(counts)


def pairs_by_double_loop(centre, near):
    return [
        (p, q)
        for p in range(len(centre))
        for q in range(len(centre))
        if p != q and near[p] and near[q] and centre[p] == centre[q]
    ]


@given(near_edges())
def test_near_pairs_are_those_of_the_double_loop(drawn):
    centre, near, _ = drawn
    pairs = near_pairs(centre, near)
    assert pairs.shape[0] == 2
    assert list(map(tuple, pairs.T.tolist())) == pairs_by_double_loop(centre, near)


@given(near_edges())
def test_tables_hold_every_edge_that_has_a_partner_exactly_once(drawn):
    centre, near, atoms = drawn
    tables = near_tables(centre, near, atoms)
    expected = sorted({p for p, _ in pairs_by_double_loop(centre, near)})
    assert tables.edges.tolist() == expected
    entries = [entry for table in tables.tables for entry in table.flatten().tolist()]
    assert sorted(entry for entry in entries if entry != len(expected)) == list(range(len(expected)))


@given(near_edges())
def test_slots_lead_to_the_place_of_each_edge_in_the_tables(drawn):
    tables = near_tables(*drawn)
    flat = torch.cat([table.flatten() for table in tables.tables] or [torch.empty(0, dtype=torch.int64)])
    assert torch.equal(flat[tables.slots], torch.arange(len(tables.edges)))


@given(near_edges())
def test_a_row_of_a_table_holds_all_near_edges_of_one_atom_in_order(drawn):
    centre, near, atoms = drawn
    tables = near_tables(centre, near, atoms)
    owners = []
    for table in tables.tables:
        for row in table.tolist():
            edges = [int(tables.edges[entry]) for entry in row if entry != len(tables.edges)]
            (owner,) = {int(centre[edge]) for edge in edges}
            assert edges == np.flatnonzero(near & (centre == owner)).tolist()
            owners.append(owner)
    assert sorted(owners) == [atom for atom in range(atoms) if near[centre == atom].sum() >= 2]


@given(near_edges())
def test_pairs_are_counted_without_being_made(drawn):
    centre, near, atoms = drawn
    assert near_tables(centre, near, atoms).pairs == near_pairs(centre, near).shape[1]


@given(near_edges(), st.integers(0, 2**32 - 1))
def test_sums_over_pairs_are_the_same_through_tables_and_index_pairs(drawn, seed):
    centre, near, atoms = drawn
    value = torch.from_numpy(np.random.default_rng(seed).normal(size=len(centre)))
    p, q = torch.from_numpy(near_pairs(centre, near))
    tables = near_tables(centre, near, atoms)
    padded = torch.cat([value[tables.edges], torch.zeros(1, dtype=torch.float64)])
    by_table = sum((padded[t].sum(dim=1) ** 2 - (padded[t] ** 2).sum(dim=1)).sum() for t in tables.tables)
    torch.testing.assert_close(torch.as_tensor(by_table, dtype=torch.float64), (value[p] * value[q]).sum())


@given(near_edges())
def test_padding_is_less_than_eight_columns_and_no_two_tables_have_one_width(drawn):
    tables = near_tables(*drawn).tables
    widths = [table.shape[1] for table in tables]
    assert len(set(widths)) == len(widths)
    for table in tables:
        used = (table != near_tables(*drawn).edges.numel()).sum(dim=1)
        assert (table.shape[1] - used < 8).all()


@pytest.mark.parametrize("count", [0, 1])
def test_an_atom_without_two_near_edges_is_in_no_table(count):
    tables = near_tables(np.zeros(5, dtype=np.int64), np.arange(5) < count, 1)
    assert (len(tables.edges), tables.tables, len(tables.slots), tables.pairs) == (0, (), 0, 0)
