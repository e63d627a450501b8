"""A layer whose experts are sharded over ranks gives what the layer gives on one, wherever its rows are computed."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_moe import ELEMENTS, MoELayer, group_rows, loop_product
from janus_moe.cost import CostModel
from janus_moe.dispatch import dispatch, dispatch_layers
from janus_moe.expert_parallel import ShardedExperts, UnitStep, shard_experts
from janus_moe.planner import plan_experts, rows_move, weights_move
from janus_moe.testing import simulate_ranks
from moe_cases import Case, cases

CHEAP_ROWS, CHEAP_WEIGHTS = CostModel(pair=10, row=1, unit=100), CostModel(pair=10, row=100, unit=1)


@st.composite
def spread_cases(draw):
    """A layer, how many rows of each element each rank has, and a plan: planned, simple, or any at all."""
    case = draw(cases())
    ranks = draw(st.integers(1, 8))
    rows = np.zeros((1, ranks, ELEMENTS), dtype=np.int64)
    for z in case.counts:
        rows[0, :, z] = draw(st.lists(st.integers(0, 2), min_size=ranks, max_size=ranks))
    return case, plan_of(case, rows, draw(st.sampled_from(["cheap rows", "cheap weights", "rows", "weights", "any"])))


def plan_of(case, rows, kind):
    selection = case.layer().router.selection.numpy()[None]
    work = rows, selection, case.experts, case.hidden
    if kind in ("cheap rows", "cheap weights"):
        return plan_experts(*work, CHEAP_ROWS if kind == "cheap rows" else CHEAP_WEIGHTS)
    plan = (rows_move if kind == "rows" else weights_move)(*work)
    if kind == "any":
        random = np.random.default_rng(case.seed)
        plan = dataclasses.replace(plan, computes=random.integers(0, plan.ranks, plan.computes.shape))
    return plan


def rank_rows(case, plan, rank):
    counts = plan.rows[0, rank].tolist()
    generator = torch.Generator().manual_seed(100 * case.seed + rank)
    return torch.randn(sum(counts), case.width, generator=generator, dtype=torch.float64), counts


def results(rows, out):
    """Values and an inner gradient, after the backward pass of a loss of both; arguments are lists over ranks."""
    energy = torch.stack([(torch.sin(part) * (1 + torch.arange(part.shape[1]))).sum() for part in out]).sum()
    inner = torch.autograd.grad(energy, rows, create_graph=True)
    loss = energy**2 + torch.stack([torch.cos(part).sum() for part in inner]).sum()
    loss.backward()
    return [part.detach() for part in out], [part.detach() for part in inner]


def one_process(case, plan):
    """All rows in one layer, sorted by element, and taken apart again."""
    layer = case.layer()
    rows, counts = zip(*(rank_rows(case, plan, rank) for rank in range(plan.ranks)), strict=True)
    leaves = [part.requires_grad_() for part in rows]
    pieces = [part.split(count) for part, count in zip(leaves, counts, strict=True)]
    present = range(len(plan.elements))
    ordered = [pieces[rank][element] for element in present for rank in range(plan.ranks)]
    together = torch.cat(ordered) if ordered else torch.cat(leaves)
    total = plan.rows[0].sum(0).tolist()
    parts = layer(together, group_rows(plan.elements, total)).split([len(piece) for piece in ordered] or [0])
    out = [
        torch.cat([parts[element * plan.ranks + rank] for element in present]) if ordered else leaves[rank] * 0
        for rank in range(plan.ranks)
    ]
    values, inner = results(leaves, out)
    return {name: parameter.grad for name, parameter in layer.named_parameters()}, (values, inner)


def sharded(case, plan):
    layers = [case.layer() for _ in range(plan.ranks)]
    leaves = []
    for rank, layer in enumerate(layers):
        shard_experts(layer, rank, plan.ranks)
        leaves.append(rank_rows(case, plan, rank)[0].requires_grad_())

    def run(rank, exchange):
        step = UnitStep(plan, rank, exchange)
        return step, layers[rank](leaves[rank], step.group_rows(plan.elements, plan.rows[0, rank].tolist()))

    steps, out = zip(*simulate_ranks(plan.ranks, run), strict=True)
    values, inner = results(leaves, out)

    def home(rank, exchange):
        steps[rank].weights_exchange = exchange
        steps[rank].return_gradients([layers[rank].experts])

    simulate_ranks(plan.ranks, home)
    outer = {}
    for name, _ in layers[0].named_parameters():
        own = [layer.get_parameter(name) for layer in layers]
        parts = [torch.zeros_like(part) if part.grad is None else part.grad for part in own]
        dim = {"experts.gate_up": 2, "experts.down": 1}.get(name)
        outer[name] = torch.stack(parts).sum(0) if dim is None else torch.cat(parts, dim)
    return outer, (values, inner)


@given(spread_cases())
def test_values_and_gradients_do_not_depend_on_ranks_and_plan(spread):
    expected_outer, expected = one_process(*spread)
    outer, found = sharded(*spread)
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for name, gradient in expected_outer.items():
        gradient = torch.zeros_like(outer[name]) if gradient is None else gradient
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(outer[name], gradient, rtol=0, atol=1e-10 * scale, msg=name)


@given(spread_cases())
def test_every_row_meets_every_expert_once(spread):
    """Read from what ranks do, not from the plan: who has which rows after the exchange, and what they compute."""
    case, plan = spread
    parts = [dispatch(plan, 0, rank) for rank in range(plan.ranks)]
    names = [
        [(rank, element, row) for element, count in enumerate(plan.rows[0, rank].tolist()) for row in range(count)]
        for rank in range(plan.ranks)
    ]
    sent = [[names[rank][place] for place in part.sent.tolist()] for rank, part in enumerate(parts)]
    met, expected = Counter(), Counter()
    for rank, part in enumerate(parts):
        work = list(names[rank])
        for source, other in enumerate(parts):
            before = sum(other.row_counts[0][:rank])
            work += sent[source][before : before + other.row_counts[0][rank]]
            assert other.row_counts[0][rank] == part.row_counts[1][source]
            assert other.slice_counts[0][rank] == part.slice_counts[1][source]
        for wide in part.wide:
            rows = range(len(work)) if wide.rows is None else wide.rows.tolist()
            ends = [0, *wide.groups.ends.tolist()]
            assert len(rows) == ends[-1]
            for group, z in enumerate(wide.groups.atomic_numbers):
                for row in rows[ends[group] : ends[group + 1]]:
                    assert plan.elements[work[row][1]] == z
                    met.update((work[row], slot) for slot in wide.slots[group].tolist())
    expected.update((name, slot) for own in names for name in own for slot in range(case.top_k))
    assert met == expected


@given(spread_cases())
def test_loads_of_the_plan_are_what_ranks_do(spread):
    case, plan = spread
    for rank in range(plan.ranks):
        part = dispatch(plan, 0, rank)
        assert sum(part.row_counts[0]) == len(part.sent) == plan.load.sent[0, rank]
        assert sum(part.row_counts[1]) == len(part.results) == plan.load.received[0, rank]
        others = sum(part.slice_counts[0]) - part.slice_counts[0][rank]
        back = sum(part.slice_counts[1]) - part.slice_counts[1][rank]
        sent = plan.bytes_sent(case.width, bytes_per_number=8)
        assert sent["weights"][0, rank] == 24 * case.width * others
        assert sent["gradients"][0, rank] == 24 * case.width * back
        assert sent["rows"][0, rank] == 4 * 8 * case.width * (len(part.sent) + len(part.results))


def test_layers_that_are_planned_alike_are_worked_out_once():
    case = Case(width=3, experts=6, top_k=2, hidden=3, shared_hidden=2, counts={1: 1, 8: 1}, seed=3)
    rows = np.zeros((3, 2, ELEMENTS), dtype=np.int64)
    rows[:, :, [1, 8]] = [[[2, 3], [4, 1]], [[9, 0], [0, 9]], [[2, 3], [4, 1]]]
    selection = np.stack([case.layer().router.selection.numpy()] * 3)
    plan = plan_experts(rows, selection, 6, 3, CHEAP_ROWS)
    first, second, third = dispatch_layers(plan, 1)
    assert first is third
    assert second.counts == dispatch(plan, 1, 1).counts == (9,)


def test_a_rank_without_rows_and_one_with_all_of_them():
    case = Case(width=3, experts=4, top_k=2, hidden=3, shared_hidden=2, counts={1: 1, 8: 1}, seed=3)
    rows = np.zeros((1, 3, ELEMENTS), dtype=np.int64)
    rows[0, 1, [1, 8]] = 2, 3
    for kind in ("cheap rows", "rows", "weights", "any"):
        spread = case, plan_of(case, rows, kind)
        torch.testing.assert_close(sharded(*spread)[1][0][1], one_process(*spread)[1][0][1], rtol=1e-12, atol=1e-12)


def test_slices_of_all_ranks_are_the_experts():
    whole = MoELayer(4, 6, 2, 5, 3).experts
    parts = [ShardedExperts(whole, 0, rank, 3) for rank in range(3)]
    assert torch.equal(torch.cat([part.gate_up for part in parts], 2), whole.gate_up)
    assert torch.equal(torch.cat([part.down for part in parts], 1), whole.down)
    assert [part.down.shape[1] for part in parts] == [2, 2, 1]


def test_sharding_a_model_numbers_its_layers_and_leaves_the_rest_alone():
    model = torch.nn.Sequential(MoELayer(4, 3, 1, 2, 2), torch.nn.Linear(4, 4), MoELayer(4, 3, 1, 2, 2))
    names = [name for name, _ in model.named_parameters()]
    layers = shard_experts(model, 1, 2)
    assert [layer.layer for layer in layers] == [0, 1]
    assert layers == [model[0].experts, model[2].experts]
    assert [name for name, _ in model.named_parameters()] == names


def test_groups_without_a_plan_and_plans_for_other_rows_are_refused():
    layer = MoELayer(4, 3, 1, 2, 2, loop_product)
    shard_experts(layer, 0, 1)
    with pytest.raises(ValueError, match=r"UnitStep\.group_rows"):
        layer(torch.zeros(2, 4), group_rows([8], [2]))
    rows = np.zeros((1, 1, ELEMENTS), dtype=np.int64)
    rows[0, 0, 8] = 3
    plan = weights_move(rows, layer.router.selection.numpy()[None], 3, 2)
    step = UnitStep(plan, 0, lambda rows, *_: rows)
    with pytest.raises(ValueError, match=r"planned for \(3,\) rows .* got \(2,\)"):
        layer(torch.zeros(2, 4), step.group_rows([8], [2]))
    layer.experts.layer = 1
    with pytest.raises(ValueError, match="the plan has 1 layers"):
        layer(torch.zeros(3, 4), step.group_rows([8], [3]))
    with pytest.raises(ValueError, match="rank 2 of 2"):
        shard_experts(MoELayer(4, 3, 1, 2, 2), 2, 2)


def one_rank(rows=3):
    layer = MoELayer(4, 3, 2, 5, 2, loop_product)
    table = np.zeros((1, 1, ELEMENTS), dtype=np.int64)
    table[0, 0, 8] = rows
    plan = weights_move(table, layer.router.selection.numpy()[None], 3, 5)
    return layer, shard_experts(layer, 0, 1), lambda: UnitStep(plan, 0, lambda given, *_: given)


def test_gradients_of_steps_add_up_and_each_goes_home_once():
    layer, experts, make_step = one_rank()
    rows, found = torch.randn(3, 4), []
    for _ in range(2):
        step = make_step()
        layer(rows, step.group_rows([8], [3])).square().sum().backward()
        step.return_gradients(experts)
        found.append(experts[0].down.grad.clone())
    torch.testing.assert_close(found[1], 2 * found[0])
    with pytest.raises(ValueError, match="layer 0 has not been run in this step"):
        step.return_gradients(experts)


def test_a_layer_that_runs_twice_in_a_step_restores_once():
    layer, experts, make_step = one_rank()
    step, calls = make_step(), []
    step.weights_exchange = lambda given, *_: calls.append(len(given)) or given
    rows = torch.randn(3, 4)
    groups = step.group_rows([8], [3])
    (layer(rows, groups).square().sum() + layer(2 * rows, groups).square().sum()).backward()
    assert calls == [2 * 5]  # two experts of five hidden units; no row moves
    step.return_gradients(experts)
    twice = experts[0].down.grad
    whole = torch.zeros_like(twice)
    for factor in (1, 2):
        experts[0].down.grad, step = None, make_step()
        layer(factor * rows, step.group_rows([8], [3])).square().sum().backward()
        step.return_gradients(experts)
        whole += experts[0].down.grad
    torch.testing.assert_close(twice, whole)


def test_frozen_experts_and_evaluation_gather_no_gradient():
    layer, experts, make_step = one_rank()
    with torch.no_grad():
        assert not layer(torch.randn(3, 4), make_step().group_rows([8], [3])).requires_grad
    for parameter in experts[0].parameters():
        parameter.requires_grad_(False)
    step = make_step()
    layer(torch.randn(3, 4), step.group_rows([8], [3])).sum().backward()
    step.return_gradients(experts)
    assert experts[0].down.grad is None
    assert layer.router.logits.grad is not None
