"""Plans are valid, equal on all ranks, and in their own cost model never worse than the simple ways."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_moe import ELEMENTS, initial_selection, planner_loops
from janus_moe.cost import CostModel
from janus_moe.planner import ExpertPlanner, plan_experts, rows_move, slice_sizes, weights_move
from janus_moe.testing import MIXTURES, rows_of_batch

costs = st.builds(
    CostModel, st.integers(0, 50), st.integers(0, 500), st.integers(0, 500), st.sampled_from([0, 10, 10_000])
)


@st.composite
def workloads(draw):
    """Rows, selection, experts and hidden units; from nothing at all to eight ranks."""
    experts = draw(st.integers(1, 12))
    top_k = draw(st.integers(1, experts))
    layers, ranks = draw(st.integers(0, 2)), draw(st.integers(1, 8))
    rows = np.zeros((layers, ranks, ELEMENTS), dtype=np.int64)
    selection = np.zeros((layers, ELEMENTS, top_k), dtype=np.int64)
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    for layer in range(layers):
        for z in range(ELEMENTS):
            selection[layer, z] = random.choice(experts, top_k, replace=False)
    for z in draw(st.lists(st.integers(1, 118), max_size=6, unique=True)):
        rows[:, :, z] = random.integers(0, draw(st.sampled_from([1, 3, 1000])), (layers, ranks))
    return rows, selection, experts, draw(st.integers(1, 9))


def naive_times(plan, cost):
    """Sets and sums, one row group after the other."""
    slices = slice_sizes(plan.hidden, plan.ranks)
    times = []
    for layer in range(plan.layers):
        pairs, moved = [0] * plan.ranks, [0] * plan.ranks
        used = [set() for _ in range(plan.ranks)]
        for source in range(plan.ranks):
            for element in range(len(plan.elements)):
                count = int(plan.rows[layer, source, element])
                if not count:
                    continue
                where = plan.computes[layer, source, element].tolist()
                for rank, expert in zip(where, plan.selection[layer, element].tolist(), strict=True):
                    pairs[rank] += count
                    used[rank].add(expert)
                for rank in set(where) - {source}:
                    moved[source] += count
                    moved[rank] += count
        restored = [len(one) for one in used]
        common = cost.exchange * any(moved)
        sent = [(sum(restored) - restored[r]) * slices[r] for r in range(plan.ranks)]
        common += cost.exchange * any(sent)
        times.append(
            [
                common
                + cost.pair * pairs[r]
                + cost.row * moved[r]
                + cost.unit * max(sent[r], restored[r] * (plan.hidden - slices[r]))
                for r in range(plan.ranks)
            ]
        )
    return np.array(times, dtype=np.int64).reshape(plan.layers, plan.ranks)


def longest_processing_time_first(rows, selection, experts, hidden):
    """A home for every expert: the one with most rows first, to the rank with fewest rows."""
    plan = weights_move(rows, selection, experts, hidden)
    computes = plan.computes.copy()
    for layer in range(plan.layers):
        loads = [0] * experts
        for element, chosen in enumerate(plan.selection[layer].tolist()):
            for expert in chosen:
                loads[expert] += int(plan.rows[layer, :, element].sum())
        filled, homes = [0] * plan.ranks, {}
        for expert in sorted(range(experts), key=lambda e: -loads[e]):
            homes[expert] = filled.index(min(filled))
            filled[homes[expert]] += loads[expert]
        for element, chosen in enumerate(plan.selection[layer].tolist()):
            computes[layer, :, element] = [homes[expert] for expert in chosen]
    return dataclasses.replace(plan, computes=computes)


@given(workloads(), costs)
def test_no_plan_costs_more_than_weights_moving_rows_moving_or_longest_processing_time(work, cost):
    slowest = naive_times(plan_experts(*work, cost), cost).max(1)
    for simple in (weights_move, rows_move, longest_processing_time_first):
        assert (slowest <= naive_times(simple(*work), cost).max(1)).all(), simple.__name__


@given(workloads(), costs)
def test_modelled_times_are_those_of_a_loop_over_row_groups(work, cost):
    for plan in (plan_experts(*work, cost), rows_move(*work), weights_move(*work)):
        assert plan.times(cost).tolist() == naive_times(plan, cost).tolist()


@given(workloads(), costs)
def test_every_row_and_expert_has_one_rank_and_rows_are_those_given(work, cost):
    rows, selection, *_ = work
    plan = plan_experts(*work, cost)
    assert plan.computes.shape == (*plan.rows.shape, selection.shape[2])
    assert plan.computes.size == 0 or (plan.computes.min() >= 0 and plan.computes.max() < plan.ranks)
    assert plan.load.pairs.sum() == rows.sum() * selection.shape[2]
    whole = np.zeros_like(rows)
    whole[:, :, list(plan.elements)] = plan.rows
    assert (whole == rows).all()
    assert (plan.selection == selection[:, list(plan.elements)]).all()


@given(workloads(), costs)
def test_every_rank_comes_to_the_same_plan(work, cost):
    rows, selection, experts, hidden = work
    first = plan_experts(rows, selection, experts, hidden, cost)
    again = plan_experts(rows.copy(order="F"), selection.astype(np.int32), experts, hidden, cost)
    assert (first.computes == again.computes).all()
    for layer in range(len(rows)):
        alone = plan_experts(rows[layer : layer + 1], selection[layer : layer + 1], experts, hidden, cost)
        places = [first.elements.index(z) for z in alone.elements]
        assert (alone.computes[0] == first.computes[layer][:, places]).all()


@given(workloads(), costs)
def test_compiled_loops_and_plain_ones_give_the_same_integers(work, cost):
    pytest.importorskip("numba")
    plan = plan_experts(*work, cost)
    plain = {
        name: getattr(function, "py_func", function)
        for name, function in vars(planner_loops).items()
        if hasattr(function, "py_func")
    }
    compiled = {name: getattr(planner_loops, name) for name in plain}
    assert "plan_layer" in compiled
    try:
        for name, function in plain.items():
            setattr(planner_loops, name, function)
        assert (plan_experts(*work, cost).computes == plan.computes).all()
    finally:
        for name, function in compiled.items():
            setattr(planner_loops, name, function)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize(("top_k", "width", "hidden"), [(4, 1024, 200), (16, 3072, 704)], ids=["S", "L"])
def test_ranks_are_even_on_realistic_mixtures(name, top_k, width, hidden):
    edges, atoms = rows_of_batch(MIXTURES[name], ranks=8, atoms=600, seed=0)
    work = (np.stack([edges, atoms]), np.stack([initial_selection(128, top_k).numpy()] * 2), 128, hidden)
    cost = CostModel.from_rates(width, hidden, flops_per_second=3e13, bytes_per_second=2e11, seconds_per_exchange=2e-5)
    times = plan_experts(*work, cost).times(cost)
    assert (times.max(1) <= 1.1 * times.mean(1)).all()
    # Plain expert parallelism leaves ranks idle: where one element is half of all rows, most of the time.
    plain = rows_move(*work).times(cost)
    assert plain.max(1)[0] > {"oxides": 2, "molecules": 2, "alloys": 1.2}[name] * plain.mean(1)[0]


def test_few_rows_go_to_weights_and_many_rows_stay():
    selection = initial_selection(64, 4).numpy()[None]
    rows = np.zeros((1, 4, ELEMENTS), dtype=np.int64)
    rows[0, :, 8] = 5
    cost = CostModel(pair=1, row=10, unit=1000)
    few = plan_experts(rows, selection, 64, 8, cost)
    many = plan_experts(rows * 10_000, selection, 64, 8, cost)
    assert few.load.restored.sum() < many.load.restored.sum() == 16
    assert few.load.sent.sum() > 0 == many.load.sent.sum()


def test_an_expert_that_everybody_needs_is_restored_on_several_ranks_though_rows_move():
    selection = np.zeros((1, ELEMENTS, 1), dtype=np.int64)
    rows = np.zeros((1, 8, ELEMENTS), dtype=np.int64)
    rows[0, 0, 1:101] = 100  # one rank has all rows, and all need one expert
    plan = plan_experts(rows, selection, 1, 8, CostModel(pair=100, row=1, unit=1))
    assert (plan.load.restored[0] == 1).all()
    assert plan.load.pairs.max() < 1.2 * plan.load.pairs.mean()


def test_plans_are_remembered_by_what_they_were_made_for():
    selection = initial_selection(8, 2).numpy()[None]
    rows = np.zeros((1, 2, ELEMENTS), dtype=np.int64)
    rows[0, :, 8] = 3, 4
    planner = ExpertPlanner(8, 4, CostModel(1, 1, 1), remembered=2)
    first = planner.plan(rows, selection)
    assert planner.plan(rows.copy(), selection) is first
    other = planner.plan(rows + (rows > 0), selection)
    assert other.rows.sum() == 9
    assert planner.plan(rows, selection[:, ::-1].copy()) is not first
    assert planner.plan(rows, selection) is not first  # two others have been used since


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, s: (r[:, :, 1:], s), r"rows must be \[layers, ranks, 119\]"),
        (lambda r, s: (r, np.concatenate([s, s])), "selection is for 2 layers"),
        (lambda r, s: (-r, s), "cannot be negative"),
        (lambda r, s: (r, s + 8), r"outside 0\.\.7"),
        (lambda r, s: (r, s * 0), "selects an expert twice"),
        (lambda r, s: (np.roll(r, -8, axis=2), s), "atomic number 0"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change, message):
    rows = np.zeros((1, 2, ELEMENTS), dtype=np.int64)
    rows[0, :, 8] = 3, 4
    with pytest.raises(ValueError, match=message):
        plan_experts(*change(rows, initial_selection(8, 2).numpy()[None]), 8, 4, CostModel(1, 1, 1))


def test_negative_costs_are_refused():
    with pytest.raises(ValueError, match="cannot be negative"):
        CostModel(1, -1, 1)


@given(st.integers(0, 40), st.integers(1, 12))
def test_slices_cover_all_hidden_units_in_order(hidden, ranks):
    sizes = slice_sizes(hidden, ranks)
    assert len(sizes) == ranks
    assert sum(sizes) == hidden
    assert sizes == sorted(sizes, reverse=True)
    assert all(size in (sizes[0], 0) for size in sizes[: max(0, -(-hidden // max(sizes[0], 1)) - 1)])
