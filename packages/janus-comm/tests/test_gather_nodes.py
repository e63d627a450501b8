"""Parameters sharded by gather nodes: one process's numbers, and the memory and bytes that are promised."""

import copy
import gc
import itertools
import warnings
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from conservative import Potential, initialize, loss_of, potential, relative_difference, structure
from janus_comm import (
    Accounting,
    Counted,
    MemoryAccounting,
    RankFailed,
    SingleRank,
    by_double_backward,
    evaluate,
    make_mesh,
)
from janus_comm.sharding import GatherNodes, Start
from janus_comm.sharding.layout import bucket_layout, bytes_of_a_step, gathers_of_a_step, without_repeats
from janus_comm.testing import run_rank_processes, run_rank_threads
from sharded_training import many_steps, one_process, rows_of, worst_difference

TOLERANCE = 1e-10
STRATEGIES = [
    {"regather": regather, "checkpoint": checkpoint} for regather in (False, True) for checkpoint in (False, True)
]


def structures_of(ranks, sizes=(4, 0, 1, 6)):
    return [structure(sizes[rank % len(sizes)], rank) for rank in range(ranks)]


def trained(ranks, make_model, strategy, steps=1, replica=1, run=run_rank_threads, structures=None):
    """Asserts that so many ranks take the steps of one process; gives what each rank's nodes and accounts say."""
    structures = structures or structures_of(ranks)
    whole = make_model()
    losses, gradients, parameters = one_process(whole, structures, steps)

    def on_rank(world):
        accounting, model = Accounting(), copy.deepcopy(whole)
        mesh = make_mesh(Counted(world, accounting), replica, ranks // replica)
        accounting_before = accounting.total().calls
        memory = MemoryAccounting()
        nodes = GatherNodes(model, model.blocks, mesh, memory=memory, **strategy)
        assert accounting.total().calls == accounting_before
        found = many_steps(model, by_double_backward, nodes.phase, [structures[world.rank]], steps)
        unit, size = mesh.unit_index, mesh.unit
        for step in range(steps):
            total = world.sum(found[0][step])
            assert relative_difference(total, losses[step]) < TOLERANCE
            assert worst_difference(found[1][step], gradients[step], unit, size) < TOLERANCE
        assert worst_difference(found[2], parameters, unit, size) < TOLERANCE
        assert memory.live == 0
        return memory.peak, [bucket.whole_bytes for bucket in nodes.buckets], accounting.tallies

    return run(ranks, on_rank)


@given(
    ranks=st.integers(1, 4),
    width=st.integers(1, 5),
    hiddens=st.lists(st.integers(1, 4), max_size=4),
    strategy=st.sampled_from(STRATEGIES),
    shares=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from(["centre", "radial"])), max_size=2),
    seed=st.integers(0, 3),
)
def test_gradients_do_not_depend_on_ranks_widths_sharing_and_strategy(ranks, width, hiddens, strategy, shares, seed):
    def make():
        model = potential(width, tuple(hiddens), seed)
        for one, other, name in shares:
            if max(one, other) < len(hiddens) and hiddens[one] == hiddens[other]:
                getattr(model.blocks[other], name).weight = getattr(model.blocks[one], name).weight
        return model

    trained(ranks, make, strategy)


@pytest.mark.parametrize(
    ("ranks", "replica", "strategy"),
    [
        (1, 1, STRATEGIES[3]),
        (2, 1, STRATEGIES[0]),
        (2, 1, STRATEGIES[3]),
        (3, 1, STRATEGIES[2]),
        (4, 1, STRATEGIES[1]),
        (4, 2, STRATEGIES[2]),
        (3, 3, STRATEGIES[1]),
    ],
)
def test_five_steps_of_adamw_are_those_of_one_process(ranks, replica, strategy):
    trained(ranks, lambda: potential(4, (None,) * 12), strategy, steps=5, replica=replica)


@pytest.mark.parametrize("strategy", STRATEGIES[::3])
def test_processes_do_as_threads_do(strategy):
    trained(3, lambda: potential(4, (None,) * 4), strategy, steps=2, run=run_rank_processes)


def shared_weight():
    """Two blocks own one matrix."""
    model = potential(4, (None, None, None))
    model.blocks[2].out.weight = model.blocks[0].out.weight
    return model


def tied_inside_a_block():
    model = potential(4, (None, None))
    model.blocks[1].centre.weight = model.blocks[1].out.weight
    return model


def partly_frozen():
    model = potential(4, (None, None, None))
    model.blocks[0].centre.weight.requires_grad_(False)
    model.blocks[1].requires_grad_(False)
    model.embedding.requires_grad_(False)
    return model


def unused_parameters():
    model = potential(4, (None, None))
    model.blocks[1].register_parameter("idle", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    model.register_parameter("alone", nn.Parameter(torch.tensor(2.0, dtype=torch.float64)))
    return model


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("make", [shared_weight, tied_inside_a_block, partly_frozen, unused_parameters])
def test_shared_frozen_and_unused_parameters_get_the_gradients_of_one_process(make, strategy):
    trained(2, make, strategy, steps=2)
    trained(3, make, strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_block_may_be_called_several_times(strategy):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = potential(4, (None, None))
            self.blocks = self.inner.blocks

        def forward(self, positions, given):
            first, others = self.inner(positions, given)
            second, more = self.inner(2 * positions, given)
            return first + second**2, others + more

    trained(2, Twice, strategy, steps=2)


def test_a_rank_without_atoms_takes_part():
    trained(3, potential, {"regather": True}, structures=[structure(0, 0), structure(5, 1), structure(0, 2)])


def test_gradients_accumulate_over_evaluations():
    examples, model = [structure(4, 1), structure(3, 2)], potential()
    expected = one_process(model, examples)[1][0]

    def on_rank(world):
        own = copy.deepcopy(model)
        nodes = GatherNodes(own, own.blocks, make_mesh(world, 1, 2), regather=True)
        # Every rank has both structures, so that the sum over ranks counts each of them twice.
        gradients = many_steps(own, by_double_backward, nodes.phase, examples)[1][0]
        return worst_difference({n: g / 2 for n, g in gradients.items()}, expected, world.rank, 2)

    assert max(run_rank_threads(2, on_rank)) < TOLERANCE


@pytest.mark.parametrize("blocks", [12, 24])
def test_gathered_again_at_most_two_buckets_are_there(blocks):
    # Wide blocks, so that what belongs to none of them is a small part of one.
    for peak, sizes, _ in trained(2, lambda: potential(16, (96,) * blocks), {"regather": True}):
        assert peak <= 2.1 * max(sizes)


def test_kept_weights_go_when_their_gradient_has_come():
    ((peak, sizes, _),) = trained(1, lambda: potential(4, (None,) * 5), {})
    assert sum(sizes) <= peak <= sum(sizes) + 2 * max(sizes)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ranks", [1, 3])
def test_bytes_sent_are_those_of_the_formula(ranks, strategy):
    blocks, width = 5, 3
    ((_, _, tallies), *_) = trained(ranks, lambda: potential(width, (None,) * blocks), strategy)
    model = potential(width, (None,) * blocks)
    rest = [p for name, p in model.named_parameters() if not name.startswith("blocks")]
    units = [list(block.parameters()) for block in model.blocks] + [rest]
    layouts = [bucket_layout([tuple(p.shape) for p in unit], len(unit), ranks) for unit in units]
    gathers = gathers_of_a_step(blocks, strategy["regather"])
    assert gathers == spread_of_gathers(blocks, strategy["regather"])
    assert tallies["gather_rows", ""].calls == sum(gathers) + 1
    assert tallies["reduce_scatter_rows", ""].calls == blocks + 1
    sent = tallies["gather_rows", ""].bytes_sent + tallies["reduce_scatter_rows", ""].bytes_sent
    assert sent == bytes_of_a_step(layouts, [*gathers, 1], 8)


def spread_of_gathers(blocks, regather):
    """Gathers of each block, counted by going through the passes one visit after the other."""
    passes = [range(blocks)]
    if regather:
        passes += [range(blocks)[::-1], range(blocks), range(blocks)[::-1]]
    times, there = [0] * blocks, None
    for visits in passes:
        for block in visits:
            times[block] += block != there
            there = block
    return times


def test_evaluation_gathers_without_gradients_and_gives_everything_back():
    example, model = structure(5, 3), potential()
    expected = evaluate(lambda x: model(x, example), [example.positions])

    def on_rank(world):
        own = copy.deepcopy(model)
        memory = MemoryAccounting()
        nodes = GatherNodes(own, own.blocks, make_mesh(world, 1, 2), regather=True, memory=memory)
        for _ in range(2):
            outputs, gradients = evaluate(lambda x: own(x, example), [example.positions], nodes.phase)
            with torch.no_grad(), nodes.phase("evaluation"), nodes.phase("forward"):
                alone = own(example.positions, example)[0]
        assert all(parameter.grad is None for parameter in own.parameters())
        assert memory.live == 0
        assert torch.equal(alone, outputs[0])
        return relative_difference(outputs[0], expected[0][0]), relative_difference(gradients[0], expected[1][0])

    for differences in run_rank_threads(2, on_rank):
        assert max(differences) < TOLERANCE


def test_training_goes_on_after_an_evaluation_and_after_an_error():
    example, model = structure(4, 4), potential()
    expected = one_process(model, [example] * 2)[1][0]

    def on_rank(world):
        nodes = GatherNodes(own := copy.deepcopy(model), own.blocks, make_mesh(world, 1, 2), regather=True)
        with pytest.raises(ZeroDivisionError):
            by_double_backward(
                lambda x: own(x, example)[0] / (1 // 0), [example.positions], loss_of(example), nodes.phase
            )
        evaluate(lambda x: own(x, example), [example.positions], nodes.phase)
        own.zero_grad()
        gradients = many_steps(own, by_double_backward, nodes.phase, [example])[1][0]
        return worst_difference(gradients, expected, world.rank, 2)

    assert max(run_rank_threads(2, on_rank)) < TOLERANCE


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_model_made_on_the_meta_device_starts_with_the_same_values_on_any_ranks(ranks):
    def on_rank(world, size):
        with torch.device("meta"):
            model = Potential(4, (None, None))
        start = Start(initialize, torch.device("cpu"), seed=7)
        GatherNodes(model, model.blocks, make_mesh(world, 1, size), start=start)
        assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    before = torch.random.get_rng_state()
    whole = on_rank(SingleRank(), 1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert float(whole["embedding"].std()) > 0.1
    # One after the other: ranks that are threads share the process's random numbers.
    for rank in range(ranks):

        class Silent(SingleRank):
            size = ranks

        silent = Silent()
        silent.rank = rank
        for name, rows in on_rank(silent_mesh_world(silent), ranks).items():
            assert torch.equal(rows, rows_of(whole[name], rank, ranks)), name


def silent_mesh_world(world):
    """A world that splits into itself: making shards needs no word from other ranks."""
    world.split = lambda color: world
    return world


def test_a_cast_of_weights_is_refused_and_the_way_to_write_it_works():
    class Casting(nn.Module):
        def __init__(self, cast):
            super().__init__()
            self.weight, self.cast = nn.Parameter(torch.randn(3, 3)), cast

        def forward(self, rows):
            weight = self.weight.to(torch.bfloat16) if self.cast else self.weight
            return torch.tanh(rows.to(torch.bfloat16) @ weight).float()

    def gradient(cast, **options):
        torch.manual_seed(0)
        model = nn.Sequential(Casting(cast), Casting(cast))
        nodes = GatherNodes(model, list(model), make_mesh(SingleRank(), 1, 1), **options)
        by_double_backward(lambda x: model(x).sum(1), [torch.ones(2, 3)], lambda o, g: (g[0] ** 2).sum(), nodes.phase)
        return [parameter.grad for parameter in model.parameters()]

    with pytest.raises(RuntimeError, match=r"0 keeps a copy of a weight of shape \[3, 3\].* dtype=torch.bfloat16"):
        gradient(True)
    recomputed, gathered = gradient(True, checkpoint=True), gradient(False, dtype=torch.bfloat16)
    for one, other in zip(recomputed, gathered, strict=True):
        assert one.dtype is torch.float32
        torch.testing.assert_close(one, other, rtol=2**-6, atol=2**-6)


def test_a_copy_of_weights_is_told_once():
    class Copying(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))

        def forward(self, rows):
            return torch.tanh(rows @ self.weight.T.contiguous().T)[:, :3]

    model = nn.Sequential(Copying(), Copying())
    nodes = GatherNodes(model, list(model), make_mesh(SingleRank(), 1, 1))
    step = lambda: by_double_backward(  # noqa: E731
        lambda x: model(x).sum(1), [torch.ones(2, 3)], lambda o, g: (g[0] ** 2).sum(), nodes.phase
    )
    with pytest.warns(UserWarning, match="keeps a copy of a weight"):
        step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step()


def test_a_model_called_outside_a_phase_says_how_to_call_it():
    model = potential()
    GatherNodes(model, model.blocks, make_mesh(SingleRank(), 1, 1))
    with pytest.raises(RuntimeError, match=r"by_double_backward\(\.\.\., phase\)"):
        model(structure(3, 0).positions, structure(3, 0))


def test_gradients_of_gradients_of_parameters_are_refused():
    example, model = structure(3, 0), potential()
    nodes = GatherNodes(model, model.blocks, make_mesh(SingleRank(), 1, 1))
    with nodes.phase("forward"):
        energies, _ = model(example.positions, example)
    with nodes.phase("outer"), pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(energies.sum(), list(model.parameters()), create_graph=True, allow_unused=True)


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        (lambda model: [nn.Linear(2, 2)], "block 0 .Linear. is no module inside the model"),
        (lambda model: [model], "block 0 .Potential. is no module inside the model"),
        (lambda model: [model.blocks[0], model.blocks[0].out], "blocks.0.out belongs to block 0 and to block 1"),
    ],
)
def test_blocks_must_be_apart_and_inside_the_model(blocks, told):
    model = potential()
    with pytest.raises(ValueError, match=told):
        GatherNodes(model, blocks(model), make_mesh(SingleRank(), 1, 1))


def test_mixed_dtypes_in_a_block_are_named():
    model = potential()
    model.blocks[1].out.float()
    with pytest.raises(ValueError, match=r"blocks.1 mixes dtypes .*blocks.1.out.weight torch.float32"):
        GatherNodes(model, model.blocks, make_mesh(SingleRank(), 1, 1))


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), max_size=4),
    ranks=st.integers(1, 7),
)
def test_every_row_of_every_parameter_has_one_rank(shapes, ranks):
    layout = bucket_layout(shapes, len(shapes), ranks)
    for shape, slot in zip(shapes, layout.slots, strict=True):
        whole = torch.arange(slot.elements).reshape(shape)
        for rank in range(ranks):
            rows, own = slot.rows_of(rank), rows_of(whole, rank, ranks)
            if whole.numel():
                assert whole.reshape(slot.rows, *shape[1:])[rows.start : rows.stop].tolist() == own.tolist()
            assert len(rows) <= slot.rows_a_rank
        assert sum(len(slot.rows_of(rank)) for rank in range(ranks)) == slot.rows
    assert layout.shard_elements * ranks >= layout.elements


@given(visits=st.lists(st.integers(0, 2)))
def test_without_repeats_no_bucket_follows_itself(visits):
    found = without_repeats(visits)
    assert all(one != other for one, other in itertools.pairwise(found))
    assert set(found) == set(visits)


def test_ranks_that_disagree_end_with_an_error():
    models = [potential(4, (None,) * 2), potential(4, (None,) * 3)]

    def on_rank(world):
        own = models[world.rank]
        nodes = GatherNodes(own, own.blocks, make_mesh(world, 1, 2))
        example = structure(3, 0)
        by_double_backward(lambda x: own(x, example), [example.positions], loss_of(example), nodes.phase)

    with pytest.raises(RankFailed):
        run_rank_threads(2, on_rank, timeout=5.0)


def test_nobody_holds_the_whole_parameters_once_they_are_sharded():
    def on_rank(world):
        model = potential(4, (None,) * 3)
        whole = [weakref.ref(parameter) for parameter in model.parameters()]
        nodes = GatherNodes(model, model.blocks, make_mesh(world, 1, 2))
        gc.collect()
        return nodes.ranks.size, [parameter() is None for parameter in whole]

    for size, gone in run_rank_threads(2, on_rank):
        assert size == 2
        assert all(gone)
