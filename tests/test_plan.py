"""What is planned is what is counted: bytes, operations and numbers kept, of steps of one rank and of several."""

import copy

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from janus_comm import Accounting, Counted
from janus_comm.testing import run_rank_threads
from janus_comm.testing.measure import ProductFlops
from janus_graph import Structure, build_graph
from janus_moe import MoELayer, loop_product
from janus_moe.cost import CostModel
from janus_moe.planner import plan_experts
from janus_train.plan.expected import unit_workloads
from janus_train.plan.products import flops_of_a_step
from janus_train.plan.shape import flops_of_experts
from janus_train.plan.statistics import data_statistics
from janus_train.plan.step import flops_of_ranks
from janus_train.plan.traffic import bytes_sent
from janus_train.plan.workload import rows_of_layers, workload_of_graph, workload_of_part
from janus_train.recipes.matris_kept import kept_tensors
from janus_train.recipes.matris_plan import matris_shape
from matris_model import PRESETS, MatRISMoE, call_block, checkpoint_block, preset_config
from test_sharded_step import BATCHES, COSTS, MODEL, atom, crystal, cut, planned, step_of_rank


class Moved(Counted):
    """Counts rows of experts apart from restored experts, which are wider."""

    def __init__(self, world, accounting, expert_width):
        super().__init__(world, accounting)
        self.expert_width = expert_width

    def exchange_rows(self, rows, send_counts, receive_counts):
        self._kind = "experts" if rows.shape[1] == self.expert_width else "rows"
        return super().exchange_rows(rows, send_counts, receive_counts)


def counted_step(world, model, graph, parts, plan, weights):
    """Bytes by kind and operations of one rank's step."""
    accounting, model = Accounting(), copy.deepcopy(model)
    over = {
        "halo": Counted(world, accounting, "halo"),
        "experts": Moved(world, accounting, 3 * model.config.width),
        "weights": Counted(world, accounting),
        "sums": Counted(world, accounting, "loss"),
    }
    with ProductFlops() as counted:
        step_of_rank(over.__getitem__, model, graph, parts, plan, weights)
    names = {"gather": "gather_rows", "reduce_scatter": "reduce_scatter_rows"}
    kinds = ("gather", "reduce_scatter", "halo", "experts", "rows", "loss")
    return {kind: accounting.total(names.get(kind, kind)).bytes_sent for kind in kinds}, counted.flops


@pytest.mark.parametrize(
    ("ranks", "batch", "cost", "regather"),
    [
        (1, "many small ones", "weights travel", True),
        (2, "one structure to be cut", "weights travel", False),
        (3, "one isolated atom", "rows travel", True),
        (4, "large and small", "rows travel", True),
    ],
)
def test_a_sharded_step_sends_and_computes_what_is_planned(ranks, batch, cost, regather):
    graph, parts = cut(BATCHES[batch], ranks)
    plan = planned(parts, COSTS[cost])
    weights = "regather" if regather else "keep"
    counted = run_rank_threads(ranks, lambda world: counted_step(world, MODEL, graph, parts, plan, weights))
    workloads = [workload_of_part(part) for part in parts]
    shape = matris_shape(MODEL.config, chained=True)
    assert (rows_of_layers(workloads, shape.layers)[:, :, list(plan.elements)] == plan.rows).all()
    expected = bytes_sent(shape, workloads, plan, regather=regather, number=8)
    for rank, (sent, flops) in enumerate(counted):
        assert sent == {kind: expected[rank][kind] for kind in sent}
        pairs = int(plan.load.pairs[:, rank].sum())
        assert flops == flops_of_a_step(shape.products, workloads[rank].counts) + flops_of_experts(shape, pairs)


def counted_flops(config, structures, names, run_block=call_block):
    """What torch counts of a step on one process, and the step's workload."""
    graph = build_graph(structures, config.cutoff, config.near_cutoff)
    with torch.device("meta"):  # the largest preset has 46 GB of weights
        model = MatRISMoE(config, run_block=run_block)
    for module in model.modules():
        if isinstance(module, MoELayer):
            module.product = loop_product  # torch's counter does not know grouped products
    with FlopCounterMode(display=False) as counter:
        found = model(graph.to("meta"), names)
        sum(getattr(found, name).square().sum() for name in names).backward()
    return counter.get_total_flops(), workload_of_graph(graph)


@pytest.mark.parametrize(("preset", "batch"), [*((name, "crystal") for name in PRESETS), ("nano", "atom")])
def test_products_of_one_process_are_those_that_torch_counts(preset, batch):
    config = preset_config(preset, magnetic_moments=preset == "nano", composition=preset != "micro")
    stress = preset != "mini"
    names = ("energy", "forces", *(["stress"] if stress else []), *(["magmoms"] if config.magnetic_moments else []))
    counted, work = counted_flops(config, [crystal((2, 1, 1), 0)] if batch == "crystal" else [atom()], names)
    shape = matris_shape(config, stress=stress)
    pairs = int(rows_of_layers([work], shape.layers).sum()) * shape.top_k
    assert flops_of_ranks(shape, [work], [pairs]) == [counted]


def test_products_of_blocks_that_are_computed_again_are_those_that_torch_counts():
    config = preset_config("micro")
    counted, work = counted_flops(config, [crystal((2, 1, 1), 0)], ("energy", "forces", "stress"), checkpoint_block)
    shape = matris_shape(config)
    pairs = int(rows_of_layers([work], shape.layers).sum()) * shape.top_k
    (planned,) = flops_of_ranks(shape, [work], [pairs], checkpoint=True)
    assert counted <= planned <= 1.001 * counted


def liquid(atoms, seed):
    rng = np.random.default_rng(seed)
    edge = (atoms / 0.06) ** (1 / 3)
    return Structure(rng.choice([1, 8, 12], atoms), rng.random((atoms, 3)) * edge, np.eye(3) * edge, [True] * 3)


@pytest.mark.parametrize("ranks", [2, 4, 8])  # one rank: exactly, in packages/janus-train
def test_strong_scaling_of_counted_work_is_foretold_from_the_size_of_a_structure(ranks):
    config = preset_config("nano", width=32, edge_width=16, cutoff=4.2, near_cutoff=3.3)
    model = MatRISMoE(config).double()
    graph, parts = cut([liquid(240, 0)], ranks, config.cutoff, config.near_cutoff)
    cost = CostModel.from_rates(config.width, config.expert_hidden, flops_per_second=1e13, bytes_per_second=1e11)
    shape = matris_shape(config, chained=True)

    def experts_for(workloads):
        rows = rows_of_layers(workloads, shape.layers)
        return plan_experts(rows, shape.selection, shape.experts, shape.expert_hidden, cost)

    plan = experts_for([workload_of_part(part) for part in parts])
    counted = run_rank_threads(ranks, lambda world: counted_step(world, model, graph, parts, plan, "regather"))
    data = data_statistics([liquid(240, 0)], config.cutoff, config.near_cutoff)
    foretold = unit_workloads(data.sizes, ranks, data.cutoff)
    planned = experts_for(foretold)
    sent = [sum(kinds.values()) for kinds in bytes_sent(shape, foretold, planned, regather=True, number=8)]
    flops = [
        flops_of_a_step(shape.products, work.counts) + flops_of_experts(shape, int(pairs))
        for work, pairs in zip(foretold, planned.load.pairs.sum(0), strict=True)
    ]
    for of in (max, np.mean):
        assert of(flops) == pytest.approx(of([flops for _, flops in counted]), rel=0.05)
        assert of(sent) == pytest.approx(of([sum(kinds.values()) for kinds, _ in counted]), rel=0.05)


@pytest.mark.parametrize("changes", [{}, {"blocks": 3, "width": 96, "top_k": 3, "message_hidden": 40}])
def test_numbers_kept_for_derivatives_are_those_that_autograd_holds(changes):
    config = preset_config("nano", **changes)
    model, graph = MatRISMoE(config), build_graph([crystal((3, 2, 2), 0)], config.cutoff, config.near_cutoff)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes(), tensor  # the tensor, so that no storage takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = model(graph, ("energy", "forces", "stress"))
        assert found.stress is not None
    planned = 4 * sum(kept.total(workload_of_graph(graph).counts) for kept in kept_tensors(config))
    assert planned == pytest.approx(sum(size for size, _ in held.values()), rel=0.03)
