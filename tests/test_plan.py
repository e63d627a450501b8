"""What is planned is what is counted: bytes, operations and numbers kept, of steps of one rank and of several."""

import copy

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from janus_comm import Accounting, Counted, make_mesh
from janus_comm.testing import run_rank_threads
from janus_comm.testing.measure import ProductFlops
from janus_graph import Structure, build_graph
from janus_moe import MoELayer, loop_product
from janus_moe.cost import CostModel
from janus_moe.planner import plan_experts
from janus_train import ShardedStep, Strategy
from janus_train.data.batch import FrameSource
from janus_train.plan.expected import unit_workloads
from janus_train.plan.products import flops_of_a_step
from janus_train.plan.shape import flops_of_experts
from janus_train.plan.statistics import data_statistics
from janus_train.plan.step import flops_of_ranks
from janus_train.plan.traffic import bytes_sent
from janus_train.plan.workload import rows_of_layers, workload_of_graph, workload_of_part
from janus_train.recipes.matris_kept import kept_tensors
from janus_train.recipes.matris_plan import matris_shape
from janus_train.recipes.matris_sharding import matris_sharding
from matris_model import PRESETS, MatRISMoE, call_block, checkpoint_block, preset_config
from test_sharded_step import MODEL, STATISTICS, WEIGHTS, atom, crystal, frame, source_of


class Moved(Counted):
    """Counts rows of experts apart from restored experts, which are wider; halos too have other rows."""

    def __init__(self, inner, accounting, kind=None, width=0):
        super().__init__(inner, accounting, kind)
        self.inner, self.accounting, self.width = inner, accounting, width

    def exchange_rows(self, rows, send_counts, receive_counts):
        if self._kind in ("experts", "rows"):
            self._kind = "experts" if rows.shape[1] == 3 * self.width else "rows"
        return super().exchange_rows(rows, send_counts, receive_counts)

    def of_kind(self, kind):
        return Moved(self.inner, self.accounting, kind, self.width)

    def split(self, color):
        return Moved(self.inner.split(color), self.accounting, self._kind, self.width)


def counted_step(world, mesh, model, source, strategy):
    """Bytes by kind and operations of a rank's step, its share of the batch, and its plan of experts."""
    accounting, model = Accounting(), copy.deepcopy(model)
    ranks = make_mesh(Moved(world, accounting, width=model.config.width), *mesh)
    sharding = matris_sharding(model, STATISTICS, 0)
    step = ShardedStep(model, sharding, ranks, WEIGHTS, strategy, torch.device("cpu"), accounting)
    prepared = step.prepare(source, range(len(source.frames)))
    (share,) = prepared.passes
    with ProductFlops() as counted:
        step.gradients(prepared)
    sent = {kind: accounting.total(kind).bytes_sent for kind, _ in accounting.tallies}
    return sent, counted.flops, share, step.plan(share)


def compared(sent):
    """Kinds of an accounting, those that a mesh uses for several things together."""
    names = {"gather_rows": "weights", "reduce_scatter_rows": "weights", "gather": "weights",
             "reduce_scatter": "weights", "all_reduce": "weights", "sum": "weights", "sums": "weights",
             "totals": "weights"}  # fmt: skip
    found = dict.fromkeys(("weights", "halo", "experts", "rows"), 0)
    for kind, count in sent.items():
        found[names.get(kind, kind)] += count
    return found


@pytest.mark.parametrize(
    ("mesh", "batch", "strategy"),
    [
        ((1, 2), "one structure to be cut", Strategy(weights="keep")),
        ((1, 3), "one isolated atom", Strategy(weights="regather")),
        ((2, 2), "large and small", Strategy(weights="regather")),
    ],
)
@pytest.mark.filterwarnings("ignore::janus_train.data.unit_batch.SmallParts")
def test_a_sharded_step_sends_and_computes_what_is_planned(mesh, batch, strategy):
    replicas, unit = mesh
    source = source_of(batch)
    counted = run_rank_threads(replicas * unit, lambda world: counted_step(world, mesh, MODEL, source, strategy))
    shape = matris_shape(MODEL.config, terms=WEIGHTS, chained=True)
    for rank, (sent, flops, share, plan) in enumerate(counted):
        replica, place = divmod(rank, unit)
        workloads = [
            workload_of_part(share.part, share.cut) for _, _, share, _ in counted[replica * unit : (replica + 1) * unit]
        ]
        planned = bytes_sent(
            shape,
            workloads,
            plan,
            replicas=replicas,
            replica=replica,
            regather=strategy.weights == "regather",
            number=8,
        )[place]
        assert compared(sent) == compared(planned)
        if replicas == 1:
            assert (sent.get("gather_rows", 0), sent.get("reduce_scatter_rows", 0)) == (
                planned["gather"], planned["reduce_scatter"],
            )  # fmt: skip
        pairs = int(plan.load.pairs[:, place].sum())
        assert flops == flops_of_a_step(shape.products, workloads[place].counts) + flops_of_experts(shape, pairs)


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
    counted, work = counted_flops(
        config, [crystal((2, 1, 1), 1).structure] if batch == "crystal" else [atom().structure], names
    )
    shape = matris_shape(config, terms=names)
    pairs = int(rows_of_layers([work], shape.layers).sum()) * shape.top_k
    assert flops_of_ranks(shape, [work], [pairs]) == [counted]


def test_products_of_blocks_that_are_computed_again_are_those_that_torch_counts():
    config = preset_config("micro")
    counted, work = counted_flops(
        config, [crystal((2, 1, 1), 1).structure], ("energy", "forces", "stress"), checkpoint_block
    )
    shape = matris_shape(config)
    pairs = int(rows_of_layers([work], shape.layers).sum()) * shape.top_k
    (planned,) = flops_of_ranks(shape, [work], [pairs], checkpoint=True)
    assert counted <= planned <= 1.001 * counted


def liquid(atoms, seed):
    rng = np.random.default_rng(seed)
    edge = (atoms / 0.06) ** (1 / 3)
    return Structure(rng.choice([1, 8, 12], atoms), rng.random((atoms, 3)) * edge, np.eye(3) * edge, [True] * 3)


@pytest.mark.parametrize("ranks", [2, 4, 8])  # one rank: exactly, in packages/janus-train
@pytest.mark.filterwarnings("ignore::janus_train.data.unit_batch.SmallParts")
def test_strong_scaling_of_counted_work_is_foretold_from_the_size_of_a_structure(ranks):
    config = preset_config("nano", width=32, edge_width=16, density_channels=16, cutoff=4.2, near_cutoff=3.3)
    source = FrameSource([frame(liquid(240, 0), 1)], config.cutoff, config.near_cutoff)
    model, strategy = MatRISMoE(config).double(), Strategy(weights="regather")
    counted = run_rank_threads(ranks, lambda world: counted_step(world, (1, ranks), model, source, strategy))
    data = data_statistics([liquid(240, 0)], config.cutoff, config.near_cutoff)
    foretold, shape = unit_workloads(data.sizes, ranks, data.cutoff), matris_shape(config, terms=WEIGHTS, chained=True)
    rates = {"flops_per_second": 5e10, "bytes_per_second": 2e9, "seconds_per_exchange": 1e-4}
    cost = CostModel.from_rates(config.width, config.expert_hidden, **rates)
    rows = rows_of_layers(foretold, shape.layers)
    plan = plan_experts(rows, shape.selection, shape.experts, shape.expert_hidden, cost)
    sent = [sum(kinds.values()) for kinds in bytes_sent(shape, foretold, plan, regather=True, number=8)]
    flops = flops_of_ranks(shape, foretold, plan.load.pairs.sum(0).tolist())
    for of in (max, np.mean):
        assert of(flops) == pytest.approx(of([flops for _, flops, _, _ in counted]), rel=0.05)
        assert of(sent) == pytest.approx(of([sum(kinds.values()) for kinds, *_ in counted]), rel=0.05)


@pytest.mark.parametrize(
    "changes", [{}, {"blocks": 3, "width": 96, "top_k": 3, "message_hidden": 40, "density_degrees": 3}]
)
def test_numbers_kept_for_derivatives_are_those_that_autograd_holds(changes):
    config = preset_config("nano", **changes)
    model, graph = MatRISMoE(config), build_graph([crystal((3, 2, 2), 1).structure], config.cutoff, config.near_cutoff)
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
