"""Selection depends on the element alone, is even, and neighbours in the periodic table share experts."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_moe import ELEMENTS, ElementRouter, expert_load, initial_selection, periodic_table_order

experts_and_top_k = st.integers(1, 200).flatmap(lambda e: st.tuples(st.just(e), st.integers(1, e)))


def stirred_router(experts, top_k):
    router = ElementRouter(experts, top_k).double()
    with torch.no_grad():
        router.logits.copy_(torch.randn(router.logits.shape, generator=torch.Generator().manual_seed(0)))
    return router


def test_periodic_table_order_holds_every_element_once():
    assert sorted(periodic_table_order()) == list(range(1, 119))


@pytest.mark.parametrize(
    "column",
    [
        [1, 3, 11, 19, 37, 55, 87],
        [4, 12, 20, 38, 56, 88],
        [29, 47, 79, 111],
        [9, 17, 35, 53, 85, 117],
        [2, 10, 18, 36, 54, 86, 118],
    ],
    ids=["alkali metals", "alkaline earths", "coinage metals", "halogens", "noble gases"],
)
def test_elements_of_a_group_are_consecutive(column):
    order = periodic_table_order()
    start = order.index(column[0])
    assert order[start : start + len(column)] == column


def test_f_elements_stand_between_groups_three_and_four():
    order = periodic_table_order()
    f_elements = {*range(58, 71), *range(90, 103)}
    places = [order.index(z) for z in f_elements]
    assert max(places) - min(places) == len(f_elements) - 1
    assert order.index(39) < min(places) < max(places) < order.index(22)


@given(experts_and_top_k)
def test_every_element_gets_top_k_different_experts(sizes):
    experts, top_k = sizes
    selection = initial_selection(experts, top_k)
    assert selection.shape == (ELEMENTS, top_k)
    assert int(selection.min()) >= 0
    assert int(selection.max()) < experts
    assert all(len(set(row)) == top_k for row in selection[1:].tolist())


@given(experts_and_top_k)
def test_every_expert_serves_about_equally_many_elements(sizes):
    experts, top_k = sizes
    selection = initial_selection(experts, top_k)[1:]
    served = torch.bincount(selection.flatten(), minlength=experts)
    # Even and odd places each tile the ring of experts; each tiling ends somewhere, which makes a difference of one.
    assert int(served.max() - served.min()) <= 2


@pytest.mark.parametrize(("experts", "top_k"), [(16, 2), (16, 4), (128, 4), (128, 8), (128, 16), (9, 3), (16, 5)])
def test_neighbours_in_the_periodic_table_share_about_half_their_experts(experts, top_k):
    selection = initial_selection(experts, top_k).tolist()
    for a, b in itertools.pairwise(periodic_table_order()):
        assert len(set(selection[a]) & set(selection[b])) in (top_k // 2, top_k - top_k // 2)


@pytest.mark.parametrize(("experts", "top_k"), [(4, 0), (4, 5), (0, 0)])
def test_impossible_selections_are_refused(experts, top_k):
    with pytest.raises(ValueError, match="between 1 and the number of experts"):
        initial_selection(experts, top_k)


@given(experts_and_top_k, st.lists(st.integers(1, 118), unique=True))
def test_gates_are_positive_and_sum_to_one(sizes, elements):
    router = stirred_router(*sizes)
    selected, gates = router(torch.tensor(elements, dtype=torch.int64))
    assert selected.shape == gates.shape == (len(elements), sizes[1])
    assert bool((gates > 0).all())
    torch.testing.assert_close(gates.sum(1), torch.ones(len(elements), dtype=torch.float64), rtol=1e-13, atol=0)


@given(st.lists(st.integers(1, 118), min_size=1, unique=True))
def test_selection_and_gates_depend_on_the_element_alone(elements):
    router = stirred_router(12, 3)
    selected, gates = router(torch.tensor(elements))
    for row, z in enumerate(elements):
        alone = router(torch.tensor([z]))
        assert torch.equal(selected[row : row + 1], alone[0])
        assert torch.equal(gates[row : row + 1], alone[1])


def test_gates_are_the_softmax_over_the_selected_logits():
    router = stirred_router(6, 3)
    selected, gates = router(torch.tensor([8]))
    weights = [float(router.logits[8, expert].detach().exp()) for expert in selected[0].tolist()]
    expected = torch.tensor([[weight / sum(weights) for weight in weights]], dtype=torch.float64)
    torch.testing.assert_close(gates, expected, rtol=1e-13, atol=0)


def test_all_gates_start_equal():
    assert torch.equal(ElementRouter(8, 4)(torch.arange(1, 119))[1], torch.full((118, 4), 0.25))


def test_learned_logits_do_not_change_the_selection():
    router = stirred_router(6, 2)
    assert torch.equal(router.selection, initial_selection(6, 2))
    assert "selection" in router.state_dict()
    assert "selection" not in dict(router.named_parameters())


@given(experts_and_top_k)
def test_rows_of_the_expert_map_sum_to_one_over_the_elements_own_experts(sizes):
    experts, top_k = sizes
    router = stirred_router(experts, top_k)
    table = router.expert_map()
    assert table.shape == (ELEMENTS, experts)
    assert not table.requires_grad
    torch.testing.assert_close(table[1:].sum(1), torch.ones(118, dtype=torch.float64), rtol=1e-12, atol=0)
    for z in (1, 26, 118):
        assert set(table[z].nonzero().flatten().tolist()) == set(router.selection[z].tolist())


@given(experts_and_top_k, st.dictionaries(st.integers(1, 118), st.integers(0, 50), max_size=6))
def test_expert_load_equals_a_count_row_by_row(sizes, rows_of_element):
    experts, top_k = sizes
    selection = initial_selection(experts, top_k)
    rows = torch.zeros(ELEMENTS, dtype=torch.int64)
    expected = [0] * experts
    for z, count in rows_of_element.items():
        rows[z] = count
        for expert in selection[z].tolist():
            expected[expert] += count
    load = expert_load(selection, rows, experts)
    assert load.dtype == torch.int64
    assert load.tolist() == expected
