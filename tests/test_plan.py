"""What is planned is what is counted: bytes, operations and numbers kept, of steps of one rank and of several."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from janus_comm import Accounting, Counted
from janus_comm.testing import run_rank_threads
from janus_comm.testing.measure import ProductFlops
from janus_graph import build_graph
from janus_moe import MoELayer, loop_product
from janus_train.plan.products import flops_of_a_step
from janus_train.plan.shape import flops_of_experts, flops_of_gates
from janus_train.plan.traffic import bytes_sent
from janus_train.plan.workload import rows_of_layers, workload_of_graph, workload_of_part
from janus_train.recipes.matris_plan import matris_shape
from matris_model import PRESETS, MatRISMoE, preset_config
from test_sharded_step import BATCHES, COSTS, MODEL, atom, crystal, cut, planned, step_of_rank


class Moved(Counted):
    """Counts rows of experts apart from restored experts, which are three times as wide."""

    def exchange_rows(self, rows, send_counts, receive_counts):
        self._kind = "experts" if rows.shape[1] == 3 * MODEL.config.width else "rows"
        return super().exchange_rows(rows, send_counts, receive_counts)


def counted_step(world, graph, parts, plan, weights):
    """Bytes by kind and operations of one rank's step."""
    accounting, model = Accounting(), copy.deepcopy(MODEL)
    over = {
        "halo": Counted(world, accounting, "halo"),
        "experts": Moved(world, accounting),
        "weights": Counted(world, accounting),
        "sums": Counted(world, accounting, "loss"),
    }
    with ProductFlops() as counted:
        step_of_rank(over.__getitem__, model, graph, parts, plan, weights)
    names = {"gather": "gather_rows", "reduce_scatter": "reduce_scatter_rows"}
    kinds = ("gather", "reduce_scatter", "halo", "experts", "rows", "loss")
    return {kind: accounting.total(names.get(kind, kind)).bytes_sent for kind in kinds}, counted.flops


@settings(max_examples=6, derandomize=True, deadline=None)
@given(st.integers(1, 4), st.sampled_from(sorted(BATCHES)), st.sampled_from(sorted(COSTS)), st.booleans())
def test_a_sharded_step_sends_and_computes_what_is_planned(ranks, batch, cost, regather):
    graph, parts = cut(BATCHES[batch], ranks)
    plan = planned(parts, COSTS[cost])
    weights = "regather" if regather else "keep"
    counted = run_rank_threads(ranks, lambda world: counted_step(world, graph, parts, plan, weights))
    workloads = [workload_of_part(part) for part in parts]
    shape = matris_shape(MODEL.config, chained=True)
    assert (rows_of_layers(workloads, shape.layers)[:, :, list(plan.elements)] == plan.rows).all()
    expected = bytes_sent(shape, workloads, plan, regather=regather, number=8)
    for rank, (sent, flops) in enumerate(counted):
        assert sent == {kind: expected[rank][kind] for kind in sent}
        pairs = int(plan.load.pairs[:, rank].sum())
        assert flops == flops_of_a_step(shape.products, workloads[rank].counts) + flops_of_experts(shape, pairs)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("batch", ["crystal", "atom"])
def test_products_of_one_process_are_those_that_torch_counts(preset, batch):
    config = preset_config(preset, magnetic_moments=preset == "nano", composition=preset != "micro")
    structures = [crystal((2, 1, 1), 0)] if batch == "crystal" else [atom()]
    graph = build_graph(structures, config.cutoff, config.near_cutoff)
    with torch.device("meta"):  # the largest preset has 46 GB of weights
        model = MatRISMoE(config)
    for module in model.modules():
        if isinstance(module, MoELayer):
            module.product = loop_product  # torch's counter does not know grouped products
    stress = preset != "mini"
    names = ("energy", "forces", *(["stress"] if stress else []), *(["magmoms"] if config.magnetic_moments else []))
    with FlopCounterMode(display=False) as counter:
        found = model(graph.to("meta"), names)
        sum(getattr(found, name).square().sum() for name in names).backward()
    shape, work = matris_shape(config, stress=stress), workload_of_graph(graph)
    rows = rows_of_layers([work], shape.layers)
    expected = flops_of_a_step(shape.products, work.counts)
    expected += flops_of_experts(shape, int(rows.sum()) * shape.top_k) + flops_of_gates(shape, (rows > 0).sum((1, 2)))
    assert counter.get_total_flops() == expected
