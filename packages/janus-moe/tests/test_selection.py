"""At the start experts have about as much to do as each other, and neighbours in the periodic table share them."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_moe import ELEMENTS, expert_load, initial_selection, periodic_table_order

experts_and_top_k = st.integers(1, 64).flatmap(lambda e: st.tuples(st.just(e), st.integers(1, e)))
# Enough experts for a half-window to be put anywhere: twice an element's own, and half of them again.
many_experts = st.integers(1, 16).flatmap(lambda k: st.tuples(st.integers(2 * k + (k + 1) // 2, 128), st.just(k)))


@st.composite
def frequencies(draw: st.DrawFn) -> torch.Tensor:
    """Counts of rows of some elements, or of all; from even to very uneven."""
    present = draw(st.lists(st.integers(1, 118), unique=True, max_size=12) | st.just(list(range(1, 119))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    steepness = draw(st.sampled_from([0.0, 1.0, 4.0]))
    rows = torch.zeros(ELEMENTS, dtype=torch.int64)
    rows[present] = (100 * torch.randn(len(present), generator=generator).mul(steepness).exp()).long() + 1
    return rows


def half_windows(rows, top_k):
    """Experts in each half-window, and rows that each of them gets from it."""
    in_order = [int(rows[z]) for z in periodic_table_order()]
    sizes = [(t + 1) * top_k // 2 - t * top_k // 2 for t in range(119)]
    return sizes, [before + after for before, after in zip([0, *in_order], [*in_order, 0], strict=True)]


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


@given(experts_and_top_k, frequencies())
def test_every_element_gets_top_k_different_experts(sizes, rows):
    experts, top_k = sizes
    selection = initial_selection(experts, top_k, rows)
    assert selection.shape == (ELEMENTS, top_k)
    assert int(selection.min()) >= 0
    assert int(selection.max()) < experts
    assert all(len(set(row)) == top_k for row in selection[1:].tolist())


@given(experts_and_top_k)
def test_elements_that_are_alike_frequent_give_every_expert_about_as_many(sizes):
    experts, top_k = sizes
    served = torch.bincount(initial_selection(experts, top_k)[1:].flatten(), minlength=experts)
    assert int(served.max() - served.min()) <= 2  # a half-window brings two elements
    assert torch.equal(initial_selection(experts, top_k), initial_selection(experts, top_k, torch.ones(119).long()))


@given(many_experts, frequencies())
def test_no_expert_has_more_than_a_half_window_above_an_even_share(sizes, rows):
    experts, top_k = sizes
    load = expert_load(initial_selection(experts, top_k, rows), rows, experts)
    _, weights = half_windows(rows, top_k)
    # The last half-window that an expert was given found it the idlest of all but the 2K that its neighbours own.
    open_to_it = experts - 2 * top_k
    assert (int(load.max()) - max(weights)) * open_to_it <= int(load.sum())


@given(many_experts, frequencies())
def test_experts_without_rows_are_those_that_the_present_elements_cannot_fill(sizes, rows):
    experts, top_k = sizes
    load = expert_load(initial_selection(experts, top_k, rows), rows, experts)
    places = sum(size for size, weight in zip(*half_windows(rows, top_k), strict=True) if weight)
    assert int((load == 0).sum()) == max(0, experts - places)


@given(st.integers(1, 40).flatmap(lambda k: st.tuples(st.integers(k + (k + 1) // 2, 64), st.just(k))), frequencies())
def test_neighbours_in_the_periodic_table_share_half_their_experts(sizes, rows):
    experts, top_k = sizes
    selection = initial_selection(experts, top_k, rows).tolist()
    for a, b in itertools.pairwise(periodic_table_order()):
        assert len(set(selection[a]) & set(selection[b])) in (top_k // 2, top_k - top_k // 2)


@pytest.mark.parametrize(("experts", "top_k"), [(24, 2), (32, 4), (128, 4), (128, 16)])
def test_uneven_elements_load_experts_as_evenly_as_sharing_allows(experts, top_k):
    rows = torch.tensor([0, *(1 + 2000 // z for z in range(1, 119))])
    load = expert_load(initial_selection(experts, top_k, rows), rows, experts)
    lowest = max(*half_windows(rows, top_k)[1], int(load.sum()) / experts)
    assert int(load.max()) <= 1.05 * lowest


@pytest.mark.parametrize(("experts", "top_k"), [(4, 0), (4, 5), (0, 0)])
def test_impossible_selections_are_refused(experts, top_k):
    with pytest.raises(ValueError, match="between 1 and the number of experts"):
        initial_selection(experts, top_k)


@pytest.mark.parametrize(
    "rows",
    [torch.ones(118, dtype=torch.int64), torch.ones(119), -torch.ones(119, dtype=torch.int64)],
    ids=["another length", "floating point", "negative"],
)
def test_frequencies_that_are_no_counts_of_rows_are_refused(rows):
    with pytest.raises(ValueError, match="one count of rows for each atomic number"):
        initial_selection(4, 2, rows)
