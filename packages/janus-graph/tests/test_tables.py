import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_graph import edge_tables, near_pairs, near_tables
from janus_graph.tables import TableCosts, table_widths


@st.composite
def near_edges(draw):
    """Centres of edges, ascending, which of them are near, and the number of atoms; both may be zero."""
    counts = draw(st.lists(st.integers(0, 20), max_size=6))
    centre = np.repeat(np.arange(len(counts)), counts)
    near = np.array(draw(st.lists(st.booleans(), min_size=len(centre), max_size=len(centre))), dtype=bool)
    return centre, near, len(counts)


def drawn_tables(drawn):
    """Both kinds of tables of the drawn edges, and the edges that each must hold, by a loop."""
    centre, near, atoms = drawn
    partners = [sum(near[q] and centre[q] == centre[p] for q in range(len(centre))) for p in range(len(centre))]
    return [
        (edge_tables(centre, atoms), list(range(len(centre)))),
        (near_tables(centre, near, atoms), [p for p in range(len(centre)) if near[p] and partners[p] >= 2]),
    ]


def features(edges, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(edges, 2)))


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
def test_an_atoms_part_of_the_edges_is_a_slice(drawn):
    centre, _, atoms = drawn
    for tables, expected in drawn_tables(drawn):
        parts = [tables.edges[start:end].tolist() for start, end in itertools.pairwise(tables.starts.tolist())]
        assert parts == [[p for p in expected if centre[p] == atom] for atom in range(atoms)]


@given(near_edges())
def test_tables_hold_every_edge_of_an_atom_once_and_in_order(drawn):
    centre, _, atoms = drawn
    for tables, expected in drawn_tables(drawn):
        assert tables.edges.tolist() == expected
        numbered = 1 + torch.arange(len(expected), dtype=torch.float64)[:, None]
        rows = [row.flatten().tolist() for table in tables.spread(numbered) for row in table]
        assert len(rows) == len(tables.atoms)
        for owner, row in zip(tables.atoms.tolist(), rows, strict=True):
            held = [int(number) - 1 for number in row if number]
            assert [tables.edges[place].item() for place in held] == [p for p in expected if centre[p] == owner]
            assert not any(row[len(held) :])
        of_atom = dict(zip(tables.atoms.tolist(), range(len(rows)), strict=True))
        assert tables.rows.tolist() == [of_atom.get(atom, len(rows)) for atom in range(atoms)]


@given(near_edges())
def test_collecting_undoes_spreading(drawn):
    for tables, expected in drawn_tables(drawn):
        rows = features(len(expected))
        if expected:
            assert torch.equal(tables.collect(tables.spread(rows)), rows)
        else:
            assert tables.spread(rows) == ()
            with pytest.raises(ValueError, match="nothing to collect"):
                tables.collect(())


@given(near_edges(), st.integers(0, 2**32 - 1))
def test_spreading_and_collecting_are_each_others_adjoint(drawn, seed):
    for tables, expected in drawn_tables(drawn):
        if not expected:
            continue
        rows = features(len(expected), seed).requires_grad_()
        spread = tables.spread(rows)
        others = [torch.cos(1.0 + part.detach() + seed % 7) for part in spread]
        product = sum((part * other).sum() for part, other in zip(spread, others, strict=True))
        torch.testing.assert_close(product, (rows * tables.collect(others)).sum())
        (back,) = torch.autograd.grad(product, rows)
        assert torch.equal(back, tables.collect(others))


@pytest.mark.parametrize("counts", [[3], [1, 0, 5, 2], [9, 9, 1, 30, 2]])
def test_moves_are_differentiable_twice_forward_and_in_batches(counts):
    centre = np.repeat(np.arange(len(counts)), counts)
    tables = edge_tables(centre, len(counts))

    def mixed(rows):
        return tables.collect([torch.sin(part).cumsum(dim=1) for part in tables.spread(rows)])

    rows = features(len(centre)).requires_grad_()
    assert torch.autograd.gradcheck(mixed, rows, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(mixed, rows)

    def size(rows):
        return mixed(rows).square().sum()

    by_vmap = torch.func.hessian(size)(rows.detach())
    torch.testing.assert_close(by_vmap, torch.autograd.functional.hessian(size, rows.detach()))


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
    by_table = sum((part.sum(dim=1) ** 2 - (part**2).sum(dim=1)).sum() for part in tables.spread(value[tables.edges]))
    torch.testing.assert_close(torch.as_tensor(by_table, dtype=torch.float64), (value[p] * value[q]).sum())


@given(
    counts=st.lists(st.integers(1, 60), max_size=8),
    power=st.sampled_from([1, 2]),
    table_cost=st.sampled_from([0, 10, 100, 2000]),
)
def test_widths_are_the_best_of_all_choices(counts, power, table_cost):
    def work(widths):
        fitting = (min(width for width in widths if width >= count) for count in counts)
        return sum(width**power for width in fitting) + table_cost * len(widths)

    found = table_widths(np.array(counts, dtype=np.int64), TableCosts(power, table_cost)).tolist()
    candidates = sorted({-(-count // 4) * 4 for count in counts})
    assert found == sorted(set(found))
    if not counts:
        assert found == []
        return
    choices = [
        [*some, candidates[-1]]
        for size in range(len(candidates))
        for some in itertools.combinations(candidates[:-1], size)
    ]
    assert work(found) == min(map(work, choices))


@pytest.mark.parametrize("count", [0, 1])
def test_an_atom_without_two_near_edges_is_in_no_table_of_pairs(count):
    tables = near_tables(np.zeros(5, dtype=np.int64), np.arange(5) < count, 1)
    assert (len(tables.edges), tables.shapes, len(tables.slots), tables.pairs) == (0, (), 0, 0)
    assert tables.rows.tolist() == [0]
