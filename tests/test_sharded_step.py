"""Graph and experts sharded at once: a batch cut over ranks, experts as planned, the numbers of one process."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_comm import Chain, Communicator, all_reduce, make_exchange, make_halo, plan_halo
from janus_comm.testing import run_rank_processes, run_rank_threads
from janus_graph import AtomGraph, Structure, build_graph
from janus_graph.packing import CostModel
from janus_graph.partition import atom_work, partition_atoms
from janus_graph.parts import GraphPart, graph_part
from janus_moe import ELEMENTS, MoELayer
from janus_moe.cost import CostModel as ExpertCosts
from janus_moe.expert_parallel import UnitStep, shard_experts
from janus_moe.planner import ExpertPlan, plan_experts
from test_parts import model_and_graph

MODEL = model_and_graph()[0]
COSTS = {"rows travel": ExpertCosts(10, 1, 2000), "weights travel": ExpertCosts(10, 2000, 1)}


def crystal(repeats: tuple[int, int, int], seed: int) -> Structure:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, repeats), indexing="ij"), -1).reshape(-1, 3)
    positions = grid * 2.6 + rng.normal(0, 0.1, grid.shape)
    return Structure(rng.choice([8, 11, 17], len(grid)), positions, np.diag(repeats) * 2.6, [True] * 3)


def atom() -> Structure:
    return Structure([8], np.zeros((1, 3)), np.zeros((3, 3)), [False] * 3)


BATCHES = {
    "one isolated atom": [atom()],
    "one structure to be cut": [crystal((5, 2, 2), 0)],
    "many small ones": [crystal((2, 1, 1), seed) for seed in range(5)] + [atom()],
    "large and small": [crystal((4, 2, 2), 1), crystal((1, 1, 1), 2), atom()],
}


def cut(structures: list[Structure], ranks: int) -> tuple[AtomGraph, list[GraphPart]]:
    graph = build_graph(structures, 4.0, 3.3)
    work = graph.in_input_order(torch.from_numpy(atom_work(graph, CostModel()))).numpy()
    sizes = np.cumsum([len(structure) for structure in structures])[:-1]
    owner = np.concatenate(partition_atoms(structures, np.split(work, sizes), ranks, 4.0))
    owner = owner[graph.input_index.numpy()]
    return graph, [graph_part(graph, owner, rank, ranks) for rank in range(ranks)]


def planned(parts: list[GraphPart], cost: ExpertCosts) -> ExpertPlan:
    """Message experts see the edges of a part, feature experts its atoms, block after block."""
    layers = [module for module in MODEL.modules() if isinstance(module, MoELayer)]
    rows = np.zeros((len(layers), len(parts), ELEMENTS), dtype=np.int64)
    for rank, part in enumerate(parts):
        rows[0::2, rank, list(part.graph.elements)] = part.graph.edges_per_element
        rows[1::2, rank, list(part.graph.elements)] = part.graph.atoms_per_element
    selection = np.stack([layer.router.selection.numpy() for layer in layers])
    return plan_experts(rows, selection, MODEL.config.experts, MODEL.config.expert_hidden, cost)


def weights_of(graph: AtomGraph) -> torch.Tensor:
    return torch.randn(graph.atoms, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def one_process(graph: AtomGraph):
    model = copy.deepcopy(MODEL)
    found = model(graph, ("energy", "forces", "stress"))
    loss = (found.forces * weights_of(graph)).sum() + found.energy.square().sum() + found.stress.square().sum()
    loss.backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    return found.detach(), gradients


def on_rank(world: Communicator, graph: AtomGraph, parts: list[GraphPart], plan: ExpertPlan):
    model, held = copy.deepcopy(MODEL), parts[world.rank]
    experts = shard_experts(model, world.rank, world.size)
    part = held.graph.replace(positions=held.graph.positions.clone().requires_grad_())
    chain = Chain(part.positions, *model.parameters())
    exchange = make_exchange(world, chain)
    step = UnitStep(plan, world.rank, exchange)
    halo = make_halo(plan_halo(part.atoms, held.send_rows, held.receive_counts), exchange)
    found = model(part, ("energy", "forces", "stress"), halo=halo, group=step.group_rows)
    energy, stress = all_reduce(found.energy, world, chain), all_reduce(found.stress, world, chain)
    mine = (found.forces * weights_of(graph)[torch.from_numpy(held.owned)]).sum()
    # What all ranks know is counted once: each takes its share.
    loss = mine + (energy.square().sum() + stress.square().sum()) / world.size
    chain.join(loss).backward()
    step.return_gradients(experts)
    return found.forces.detach(), energy.detach(), stress.detach(), synchronised(model, world)


def synchronised(model: torch.nn.Module, world: Communicator) -> dict[str, torch.Tensor]:
    """Gradients as one process has them: sums of what every rank has, slices of experts side by side."""
    gradients = {}
    for name, parameter in model.named_parameters():
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if "experts.experts." in name:
            parts = world.gather_object(own.numpy())
            gradients[name] = torch.cat(list(map(torch.from_numpy, parts)), 2 if name.endswith("gate_up") else 1)
        else:
            gradients[name] = world.sum(own)
    return gradients


def check(run, ranks: int, structures: list[Structure], cost: ExpertCosts) -> None:
    graph, parts = cut(structures, ranks)
    plan = planned(parts, cost)
    expected, gradients = one_process(graph)
    for rank, (forces, energy, stress, found) in enumerate(run(ranks, lambda w: on_rank(w, graph, parts, plan))):
        torch.testing.assert_close(forces, expected.forces[torch.from_numpy(parts[rank].owned)], rtol=0, atol=1e-10)
        torch.testing.assert_close(energy, expected.energy, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(stress, expected.stress, rtol=0, atol=1e-11)
        for name, gradient in gradients.items():
            scale = max(1.0, float(gradient.abs().max()))
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-10 * scale, msg=name)


@settings(max_examples=12, derandomize=True, deadline=None)
@given(st.integers(1, 4), st.sampled_from(sorted(BATCHES)), st.sampled_from(sorted(COSTS)))
def test_energies_forces_stress_and_gradients_are_those_of_one_process(ranks, batch, cost):
    check(run_rank_threads, ranks, BATCHES[batch], COSTS[cost])


@pytest.mark.parametrize("cost", COSTS)
def test_processes_give_the_numbers_of_one(cost):
    check(run_rank_processes, 3, BATCHES["large and small"], COSTS[cost])
