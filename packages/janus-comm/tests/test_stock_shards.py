"""The tangent route on stock FSDP2 and HSDP; and what both ways of sharding share: DTensors, checkpoints, a start."""

import copy
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from conservative import Potential, initialize, loss_of, potential, relative_difference, structure
from janus_comm import by_double_backward, by_tangent, evaluate, make_mesh
from janus_comm.sharding import GatherNodes, Start, StockShards, as_dtensors, make_device_mesh
from janus_comm.testing import run_rank_processes
from sharded_training import many_steps, one_process, rows_of, worst_difference

TOLERANCE = 1e-10
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")


def local(tensors):
    return {name: each.to_local() if isinstance(each, DTensor) else each for name, each in tensors.items()}


@pytest.mark.parametrize(
    ("ranks", "replica", "checkpoint"),
    [(1, 1, True), (2, 1, False), (2, 1, True), (3, 1, True), (4, 1, False), (4, 2, True)],
)
def test_five_steps_of_adamw_by_tangent_on_fsdp2_are_those_of_one_process(ranks, replica, checkpoint):
    structures = [structure(4 + rank, rank) for rank in range(ranks)]
    whole = potential(4, (None,) * 12)
    losses, gradients, parameters = one_process(whole, structures, steps=5)

    def on_rank(world):
        mesh = make_mesh(world, replica, ranks // replica)
        model = copy.deepcopy(whole)
        stock = StockShards(model, model.blocks, make_device_mesh(mesh, CPU), checkpoint=checkpoint)
        found = many_steps(model, by_tangent, stock.phase, [structures[world.rank]], steps=5)
        differences = [relative_difference(world.sum(found[0][step]), losses[step]) for step in range(5)]
        pairs = [*zip(found[1], gradients, strict=True), (found[2], parameters)]
        worst = [worst_difference(local(shards), wanted, mesh.unit_index, mesh.unit) for shards, wanted in pairs]
        return max(*differences, *worst)

    assert max(run_rank_processes(ranks, on_rank)) < TOLERANCE


@pytest.mark.parametrize("blocks", [12, 24])
def test_one_block_of_fsdp2_is_whole_at_a_time_on_the_tangent_route(blocks):
    def on_rank(world):
        model, example = potential(4, (None,) * blocks), structure(4, world.rank)
        stock = StockShards(model, model.blocks, make_device_mesh(make_mesh(world, 1, 2), CPU))
        whole, most = set(), 0

        def watch(block):
            group = block._get_fsdp_state()._fsdp_param_group
            to_whole, to_shards = group._to_unsharded, group._to_sharded

            def come():
                nonlocal most
                whole.add(block)
                most = max(most, len(whole))
                to_whole()

            def go():
                whole.discard(block)
                to_shards()

            group._to_unsharded, group._to_sharded = come, go

        for block in model.blocks:
            watch(block)
        many_steps(model, by_tangent, stock.phase, [example], steps=2)
        return most

    assert run_rank_processes(2, on_rank) == [1, 1]


def test_evaluation_on_fsdp2_is_that_of_one_process():
    example, whole = structure(5, 1), potential()
    expected = evaluate(lambda x: whole(x, example), [example.positions])

    def on_rank(world):
        model = copy.deepcopy(whole)
        stock = StockShards(model, model.blocks, make_device_mesh(make_mesh(world, 1, 2), CPU))
        outputs, gradients = evaluate(lambda x: model(x, example), [example.positions], stock.phase)
        assert all(parameter.grad is None for parameter in model.parameters())
        return relative_difference(outputs[0], expected[0][0]), relative_difference(gradients[0], expected[1][0])

    for differences in run_rank_processes(2, on_rank):
        assert max(differences) < TOLERANCE


def tied_and_frozen():
    model = potential(4, (None, None, None))
    model.blocks[2].out.weight = model.blocks[2].centre.weight
    model.blocks[1].centre.weight.requires_grad_(False)
    return model


def test_tied_and_frozen_parameters_on_fsdp2_get_the_gradients_of_one_process():
    structures, whole = [structure(4, 0), structure(5, 1)], tied_and_frozen()
    _, gradients, parameters = one_process(whole, structures, steps=2)

    def on_rank(world):
        model = copy.deepcopy(whole)
        stock = StockShards(model, model.blocks, make_device_mesh(make_mesh(world, 1, 2), CPU))
        found = many_steps(model, by_tangent, stock.phase, [structures[world.rank]], steps=2)
        worst = worst_difference(local(found[1][0]), gradients[0], world.rank, 2)
        return max(worst, worst_difference(local(found[2]), parameters, world.rank, 2))

    assert max(run_rank_processes(2, on_rank)) < TOLERANCE


def test_a_parameter_of_several_blocks_is_refused_by_name():
    model = potential()
    model.blocks[2].out.weight = model.blocks[0].out.weight

    def on_rank(world):
        StockShards(model, model.blocks, make_device_mesh(make_mesh(world, 1, 1), CPU))

    with pytest.raises(ValueError, match=r"blocks.0.out.weight and blocks.2.out.weight are one parameter"):
        run_rank_processes(1, on_rank)


def gather_nodes(model, world):
    mesh = make_mesh(world, 1, world.size)
    nodes = GatherNodes(model, model.blocks, mesh, presented=as_dtensors(make_device_mesh(mesh, CPU)))
    return by_double_backward, nodes.phase


def stock_shards(model, world):
    stock = StockShards(model, model.blocks, make_device_mesh(make_mesh(world, 1, world.size), CPU))
    return by_tangent, stock.phase


def take_step(model, optimizer, sharded, structures, world):
    route, phase = sharded
    optimizer.zero_grad()
    for example in structures[world.rank :: world.size]:
        route(lambda x, s=example: model(x, s), [example.positions], loss_of(example), phase)
    optimizer.step()


@pytest.mark.parametrize(("first", "second"), [(gather_nodes, stock_shards), (stock_shards, gather_nodes)])
def test_a_checkpoint_of_either_way_on_two_ranks_goes_on_in_the_other_on_three(first, second):
    """In the unsharded names, optimiser included, and one process's parameters come out."""
    structures, whole = [structure(4, seed) for seed in range(6)], potential()
    expected = one_process(whole, structures, steps=4)[2]

    def start(world, shard):
        model = copy.deepcopy(whole)
        sharded = shard(model, world)
        return model, sharded, torch.optim.AdamW(model.parameters(), lr=3e-3)

    def write(world):
        model, sharded, optimizer = start(world, first)
        for _ in range(2):
            take_step(model, optimizer, sharded, structures, world)
        state, optimizer_state = get_state_dict(model, optimizer)
        assert state.keys() == whole.state_dict().keys()
        dcp.save({"model": state, "optimizer": optimizer_state}, checkpoint_id=folder)

    def read(world):
        model, sharded, optimizer = start(world, second)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        state, optimizer_state = get_state_dict(model, optimizer)
        everything = {"model": state, "optimizer": optimizer_state}
        dcp.load(everything, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=everything["model"], optim_state_dict=everything["optimizer"])
        for _ in range(2):
            take_step(model, optimizer, sharded, structures, world)
        found = {name: parameter.detach() for name, parameter in model.named_parameters()}
        return worst_difference(local(found), expected, world.rank, world.size)

    with tempfile.TemporaryDirectory() as where:
        folder = Path(where) / "checkpoint"
        run_rank_processes(2, write)
        assert max(run_rank_processes(3, read)) < TOLERANCE


def test_moving_means_see_shards_only():
    whole, examples = potential(), [structure(4, 0), structure(4, 1)]
    expected = one_process(whole, examples)[2]

    def on_rank(world):
        model = copy.deepcopy(whole)
        sharded = gather_nodes(model, world)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        mean = {name: value.clone() for name, value in before.items()}
        take_step(model, torch.optim.AdamW(model.parameters(), lr=3e-3), sharded, examples, world)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                mean[name].lerp_(parameter, 0.25)
        wanted = {name: 0.75 * whole.state_dict()[name] + 0.25 * expected[name] for name in expected}
        return worst_difference(local(mean), wanted, world.rank, world.size)

    assert max(run_rank_processes(2, on_rank)) < TOLERANCE


def test_a_model_made_on_the_meta_device_starts_alike_on_any_ranks_and_either_way():
    start = Start(initialize, CPU, seed=3)

    def on_rank(world):
        parts = []
        for way in ("gathered", "stock"):
            with torch.device("meta"):
                model = Potential(4, (None, None))
            mesh = make_mesh(world, 1, world.size)
            if way == "gathered":
                GatherNodes(model, model.blocks, mesh, start=start)
            else:
                StockShards(model, model.blocks, make_device_mesh(mesh, CPU), start=start)
            assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
            parts.append(local({name: parameter.detach() for name, parameter in model.named_parameters()}))
        assert all(torch.equal(parts[0][name], parts[1][name]) for name in parts[0])
        return parts[0]

    (whole,) = run_rank_processes(1, on_rank)
    assert float(whole["embedding"].std()) > 0.1
    for rank, parts in enumerate(run_rank_processes(3, on_rank)):
        for name, rows in parts.items():
            assert torch.equal(rows, rows_of(whole[name], rank, 3)), name


class Picky(torch.nn.Module):
    """Uses all its parameters only where there are many rows."""

    def __init__(self):
        super().__init__()
        self.often, self.rarely = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3, bias=False)

    def forward(self, rows):
        found = rows + torch.tanh(self.often(rows))
        return found + torch.sin(self.rarely(rows)) if len(rows) > 2 else found


class PickyPotential(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Picky(), Picky()])

    def forward(self, rows):
        for block in self.blocks:
            rows = block(rows)
        return rows.square().sum().reshape(1)


def test_ranks_that_use_different_parameters_of_a_block_get_the_sum_of_their_gradients():
    torch.manual_seed(0)
    whole = PickyPotential().double()
    rows = [torch.rand(count, 3, dtype=torch.float64) for count in (4, 1)]

    def loss(outputs, gradients):
        return outputs[0].sum() + gradients[0].square().sum()

    one = copy.deepcopy(whole)
    for own in rows:
        by_double_backward(one, [own], loss)

    def on_rank(world):
        model, mesh = copy.deepcopy(whole), make_mesh(world, 1, 2)
        stock = StockShards(model, model.blocks, make_device_mesh(mesh, CPU))
        by_tangent(model, [rows[world.rank]], loss, stock.phase)
        found = local({name: each.grad for name, each in model.named_parameters()})
        wanted = {name: each.grad for name, each in one.named_parameters()}
        return worst_difference(found, wanted, mesh.unit_index, 2)

    assert max(run_rank_processes(2, on_rank)) < TOLERANCE
