"""Data, graph, experts and parameters sharded at once: the loss, the gradient and the predictions of one process."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_comm import Accounting, Chain, Counted, SingleRank, make_mesh
from janus_comm.testing import run_rank_processes, run_rank_threads
from janus_graph import Structure
from janus_moe.cost import CostModel
from janus_train import ReplicatedStep, ShardedStep, Strategy
from janus_train.data.batch import FrameSource
from janus_train.data.frame import Frame
from janus_train.data.statistics import Statistics
from janus_train.recipes.matris_sharding import matris_sharding
from matris_model import MatRISMoE
from test_parts import model_and_graph

MODEL: MatRISMoE = model_and_graph()[0]
WEIGHTS = {"energy": 1.0, "forces": 2.0, "stress": 3.0}
STATISTICS = Statistics(
    references=np.zeros((1, 119)), scales=np.ones(1), residuals=np.zeros(1), atoms=np.ones(119, dtype=np.int64),
    warnings=[],
)  # fmt: skip
ROWS_MOVE = CostModel(pair=10, row=1, unit=2000)
BACKWARD = {
    "keep": Strategy(weights="keep"),
    "regather": Strategy(weights="regather"),
    "keep, computed again": Strategy(weights="keep", checkpoint=True),
    "regather, computed again, in passes": Strategy(weights="regather", checkpoint=True, pass_edges=100),
    "keep, rows move": Strategy(weights="keep", expert_costs=ROWS_MOVE),
    "regather, computed again, rows move": Strategy(weights="regather", checkpoint=True, expert_costs=ROWS_MOVE),
}
TANGENT = {
    "tangent": Strategy(route="tangent"),
    "tangent, computed again, in passes": Strategy(route="tangent", checkpoint=True, pass_edges=100),
    "tangent, computed again, rows move": Strategy(route="tangent", checkpoint=True, expert_costs=ROWS_MOVE),
}


def frame(structure: Structure, seed: int) -> Frame:
    rng = np.random.default_rng(seed)
    return Frame(
        structure, task="test", origin=f"frame {seed}", energy=float(rng.normal()),
        forces=rng.normal(size=(len(structure), 3)) if seed % 3 else None,
        stress=rng.normal(size=(3, 3)) * 0.1 if structure.has_volume else None,
    )  # fmt: skip


def crystal(repeats: tuple[int, int, int], seed: int) -> Frame:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, repeats), indexing="ij"), -1).reshape(-1, 3)
    positions = grid * 2.6 + rng.normal(0, 0.1, grid.shape)
    cell = np.diag(repeats) * 2.6 if seed % 2 else np.zeros((3, 3))
    return frame(Structure(rng.choice([8, 11, 17], len(grid)), positions, cell, [bool(seed % 2)] * 3), seed)


def atom() -> Frame:
    return frame(Structure([8], np.zeros((1, 3)), np.zeros((3, 3)), [False] * 3), 1)


BATCHES = {
    "one isolated atom": [atom()],
    "one structure to be cut": [crystal((5, 2, 2), 7)],
    "many small ones": [crystal((2, 1, 1), seed) for seed in range(5)] + [atom()],
    "large and small": [crystal((4, 2, 2), 1), crystal((1, 1, 1), 2), atom()],
}


def source_of(batch: str) -> FrameSource:
    return FrameSource(BATCHES[batch], MODEL.config.cutoff, MODEL.config.near_cutoff)


def one_process(batch: str):
    model, source = copy.deepcopy(MODEL), source_of(batch)
    step = ReplicatedStep(model, WEIGHTS, SingleRank())
    result = step.gradients(step.prepare(source, range(len(source.frames))))
    predictions = dict(step.predictions(source, tuple(WEIGHTS), 10**6))
    return result, {name: parameter.grad for name, parameter in model.named_parameters()}, predictions


def on_rank(world, replica: int, unit: int, strategy: Strategy, batch: str):
    model, source, accounting = copy.deepcopy(MODEL), source_of(batch), Accounting()
    mesh = make_mesh(Counted(world, accounting), replica, unit)
    sharding = matris_sharding(model, STATISTICS, 0)
    step = ShardedStep(model, sharding, mesh, WEIGHTS, strategy, torch.device("cpu"), accounting)
    predictions = dict(step.predictions(source, tuple(WEIGHTS), 10**6))
    result = step.gradients(step.prepare(source, range(len(source.frames))))
    gradients = {}
    for name, parameter in model.named_parameters():
        own = parameter.grad.to_local() if hasattr(parameter.grad, "to_local") else parameter.grad
        gradients[name] = (own.clone(), step.portions[name].offsets if name in step.portions else None)
    return result, gradients, predictions


def check(run, mesh: tuple[int, int], strategy: Strategy, batch: str) -> None:
    result, whole, expected = one_process(batch)
    results = run(mesh[0] * mesh[1], lambda world: on_rank(world, *mesh, strategy, batch))
    covered = {name: torch.zeros_like(gradient) for name, gradient in whole.items()}
    predicted = {}
    for found, gradients, predictions in results:
        assert found.loss == pytest.approx(result.loss, rel=1e-11)
        assert found.grad_norm == pytest.approx(result.grad_norm, rel=1e-10)
        assert found.terms == pytest.approx(result.terms, rel=1e-11)
        predicted |= predictions
        for name, (own, offsets) in gradients.items():
            region = tuple(slice(o, o + n) for o, n in zip(offsets or [0] * own.dim(), own.shape, strict=True))
            scale = max(1.0, float(whole[name].abs().max()))
            torch.testing.assert_close(own, whole[name][region], rtol=0, atol=1e-10 * scale, msg=name)
            covered[name][region] += 1
    copies = {
        name: mesh[0] if name in results[0][1] and results[0][1][name][1] else mesh[0] * mesh[1] for name in whole
    }
    assert all(bool((count == copies[name]).all()) for name, count in covered.items())
    assert sorted(predicted) == sorted(expected)
    for place, prediction in predicted.items():
        assert prediction.energy == pytest.approx(expected[place].energy, rel=1e-11)
        np.testing.assert_allclose(prediction.forces, expected[place].forces, rtol=0, atol=1e-10)
        if expected[place].stress is not None:
            np.testing.assert_allclose(prediction.stress, expected[place].stress, rtol=0, atol=1e-10)


@settings(max_examples=8, derandomize=True, deadline=None)
@given(
    st.sampled_from([(1, 2), (2, 2), (1, 3), (1, 4), (3, 2)]),
    st.sampled_from(sorted(BACKWARD)),
    st.sampled_from(sorted(BATCHES)),
)
@pytest.mark.filterwarnings("ignore::janus_train.data.unit_batch.SmallParts")
def test_loss_gradient_and_predictions_are_those_of_one_process(mesh, strategy, batch):
    check(run_rank_threads, mesh, BACKWARD[strategy], batch)


@pytest.mark.parametrize(
    ("mesh", "strategy", "batch"),
    [
        ((1, 3), "regather, computed again, in passes", "large and small"),
        ((1, 3), "keep", "one isolated atom"),
        ((1, 3), "tangent", "one isolated atom"),
        ((2, 2), "tangent, computed again, in passes", "large and small"),
        ((1, 4), "tangent", "one structure to be cut"),
        ((1, 3), "tangent, computed again, rows move", "one structure to be cut"),
    ],
)
@pytest.mark.filterwarnings("ignore::janus_train.data.unit_batch.SmallParts")
def test_processes_give_the_numbers_of_one(mesh, strategy, batch):
    check(run_rank_processes, mesh, {**BACKWARD, **TANGENT}[strategy], batch)


@pytest.mark.parametrize("strategy", ["keep", "regather, computed again, rows move"])
@pytest.mark.filterwarnings("ignore::janus_train.data.unit_batch.SmallParts")
def test_single_precision_is_as_exact_as_it_can_be(strategy):
    single = copy.deepcopy(MODEL).float()
    source = source_of("large and small")
    step = ReplicatedStep(copy.deepcopy(single), WEIGHTS, SingleRank())
    one = step.gradients(step.prepare(source, range(len(source.frames))))

    def on(world):
        model = copy.deepcopy(single)
        shared = ShardedStep(
            model, matris_sharding(model, STATISTICS, 0), make_mesh(world, 1, 3), WEIGHTS, BACKWARD[strategy],
            torch.device("cpu"), Accounting(),
        )  # fmt: skip
        return shared.gradients(shared.prepare(source, range(len(source.frames))))

    for found in run_rank_threads(3, on):
        assert found.loss == pytest.approx(one.loss, rel=1e-5)
        assert found.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)


def test_a_model_made_block_by_block_has_the_weights_of_one_process():
    whole = MatRISMoE(MODEL.config, 3).double()

    def on(world):
        with torch.device("meta"):
            model = MatRISMoE(MODEL.config, 3)
        model.double()
        step = ShardedStep(
            model, matris_sharding(model, STATISTICS, 3), make_mesh(world, 1, 3), WEIGHTS, Strategy(),
            torch.device("cpu"), Accounting(),
        )  # fmt: skip
        made = step.whole_model()
        return None if made is None else {name: tensor.clone() for name, tensor in made.state_dict().items()}

    made = run_rank_processes(3, on)[0]  # threads would draw from one generator
    frequencies = torch.from_numpy(STATISTICS.atoms)
    whole.reset_parameters(3, frequencies)
    assert made is not None
    assert list(made) == list(whole.state_dict())
    for name, tensor in whole.state_dict().items():
        assert torch.equal(made[name], tensor), name


@pytest.mark.parametrize("strategy", ["keep", "keep, computed again"])
def test_a_step_leaves_nothing_behind(strategy, monkeypatch):
    made = []

    class Watched(Chain):
        def __init__(self, *inputs, **named):
            super().__init__(*inputs, **named)
            made.append(weakref.ref(self))

    monkeypatch.setattr("janus_train.unit_pass.Chain", Watched)
    monkeypatch.setattr("janus_train.sharded.Chain", Watched)
    model, source = copy.deepcopy(MODEL), source_of("large and small")
    step = ShardedStep(
        model, matris_sharding(model, STATISTICS, 0), make_mesh(SingleRank(), 1, 1), WEIGHTS, BACKWARD[strategy],
        torch.device("cpu"), Accounting(),
    )  # fmt: skip
    gc.disable()  # what is in no cycle goes by itself, and with a chain its graph and all that this has kept
    try:
        step.gradients(step.prepare(source, range(len(source.frames))))
        assert made
        assert all(chain() is None for chain in made)
    finally:
        gc.enable()
