"""Selection and gates depend on the element alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_moe import ELEMENTS, ElementRouter, expert_load, initial_selection

experts_and_top_k = st.integers(1, 200).flatmap(lambda e: st.tuples(st.just(e), st.integers(1, e)))


def stirred_router(experts, top_k):
    router = ElementRouter(experts, top_k).double()
    with torch.no_grad():
        router.logits.copy_(torch.randn(router.logits.shape, generator=torch.Generator().manual_seed(0)))
    return router


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


@given(experts_and_top_k)
def test_a_table_starts_with_the_experts_of_its_selection_on_top_and_alike(sizes):
    experts, top_k = sizes
    router = stirred_router(experts, top_k)
    selection = initial_selection(experts, top_k, torch.arange(ELEMENTS))
    router.start_from(selection)
    assert torch.equal(router.selection, selection)
    assert torch.equal(router.logits.detach().topk(top_k).indices.sort().values[1:], selection[1:])
    gates = router(torch.arange(1, ELEMENTS))[1]
    torch.testing.assert_close(gates, torch.full_like(gates, 1 / top_k), rtol=1e-14, atol=0)


def test_a_selection_for_another_router_is_refused():
    with pytest.raises(ValueError, match=r"shape \(119, 3\) for a router of \(119, 2\)"):
        ElementRouter(6, 2).start_from(initial_selection(6, 3))


def test_learned_logits_do_not_change_the_selection():
    router = stirred_router(6, 2)
    assert torch.equal(router.selection, initial_selection(6, 2))
    assert {"selection", "frozen_at"} <= set(router.state_dict())
    assert set(dict(router.named_parameters())) == {"logits"}


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
