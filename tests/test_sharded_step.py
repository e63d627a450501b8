"""Graph, experts and parameters sharded at once, over the same ranks: the numbers of one process."""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_comm import Chain, Communicator, all_reduce, make_exchange, make_halo, make_mesh, plan_halo
from janus_comm.sharding import GatherNodes
from janus_comm.testing import run_rank_processes, run_rank_threads
from janus_graph import AtomGraph, Structure, build_graph, strained
from janus_graph.packing import CostModel
from janus_graph.partition import atom_work, partition_atoms
from janus_graph.parts import GraphPart, graph_part
from janus_moe import ELEMENTS, MoELayer
from janus_moe.cost import CostModel as ExpertCosts
from janus_moe.expert_parallel import UnitStep, shard_experts
from janus_moe.planner import ExpertPlan, plan_experts
from test_expert_parallel import whole_gradients
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


def cut(
    structures: list[Structure], ranks: int, cutoff: float = 4.0, near_cutoff: float = 3.3
) -> tuple[AtomGraph, list[GraphPart]]:
    graph = build_graph(structures, cutoff, near_cutoff)
    work = graph.in_input_order(torch.from_numpy(atom_work(graph, CostModel()))).numpy()
    sizes = np.cumsum([len(structure) for structure in structures])[:-1]
    owner = np.concatenate(partition_atoms(structures, np.split(work, sizes), ranks, cutoff))
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
    """Forces, energies, dE/dε, and the gradients of a loss of all of them."""
    model, positions = copy.deepcopy(MODEL), graph.positions.clone().requires_grad_()
    strain = torch.zeros_like(graph.cells, requires_grad=True)
    energies = model(strained(graph.replace(positions=positions), strain), ("energy",)).energy
    gradients = torch.autograd.grad(energies.sum(), [positions, strain], create_graph=True)
    loss = energies.square().sum() + gradients[1].square().sum() - (gradients[0] * weights_of(graph)).sum()
    loss.backward()
    outer = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    return -gradients[0].detach(), energies.detach(), gradients[1].detach(), outer


def on_rank(world: Communicator, graph: AtomGraph, parts: list[GraphPart], plan: ExpertPlan, weights: str):
    """Forces, energies, dE/dε and whole gradients of a step of one rank."""
    model = copy.deepcopy(MODEL)
    own = step_of_rank(lambda purpose: world, model, graph, parts, plan, weights)
    return *own, whole_gradients(model, world, weights != "whole")


def step_of_rank(
    over: Callable[[str], Communicator], model, graph: AtomGraph, parts: list[GraphPart], plan: ExpertPlan, weights: str
):
    """A step of one rank, its dense parameters "whole" or shards of gather nodes that "keep" or "regather" them.

    `over("halo")` is what carries halos, `over("experts")`, `over("weights")` and `over("sums")` the rest: one
    communicator.
    """
    world = over("sums")
    held = parts[world.rank]
    experts = shard_experts(model, world.rank, world.size)
    slices = [parameter for layer in experts for parameter in layer.parameters()]
    part = held.graph.replace(positions=held.graph.positions.clone().requires_grad_())
    nodes = None
    if weights != "whole":
        mesh = make_mesh(over("weights"), 1, world.size)
        nodes = GatherNodes(model, model.blocks, mesh, regather=weights == "regather", ignored=slices)
    phase = (lambda name: nullcontext()) if nodes is None else nodes.phase
    chain = Chain(part.positions)
    step = UnitStep(plan, world.rank, make_exchange(over("experts"), chain))
    exchange = make_exchange(over("halo"), chain)
    halo = make_halo(plan_halo(part.atoms, held.send_rows, held.receive_counts), exchange)
    strain = torch.zeros_like(part.cells, requires_grad=True)

    def run_block(block, *features):
        return block(*features) if nodes is None else nodes.in_step(chain, block, *features)

    with phase("forward"):
        energies = model(strained(part, strain), ("energy",), halo, run_block, step.group_rows).energy
    with phase("inner"):
        inputs = [part.positions, strain]
        gradients = torch.autograd.grad(chain.join(energies.sum()), inputs, create_graph=True)
    # What all ranks know is counted once: each takes its share.
    energy, virial = all_reduce(energies, world, chain), all_reduce(gradients[1], world, chain)
    mine = -(gradients[0] * weights_of(graph)[torch.from_numpy(held.owned)]).sum()
    loss = mine + (energy.square().sum() + virial.square().sum()) / world.size
    with phase("outer"):
        chain.join(loss, *gradients).backward()
    step.return_gradients(experts)
    return -gradients[0].detach(), energy.detach(), virial.detach()


def check(run, ranks: int, structures: list[Structure], cost: ExpertCosts, weights: str) -> None:
    graph, parts = cut(structures, ranks)
    plan = planned(parts, cost)
    forces, energy, virial, gradients = one_process(graph)
    results = run(ranks, lambda world: on_rank(world, graph, parts, plan, weights))
    for rank, (own_forces, own_energy, own_virial, found) in enumerate(results):
        torch.testing.assert_close(own_forces, forces[torch.from_numpy(parts[rank].owned)], rtol=0, atol=1e-10)
        torch.testing.assert_close(own_energy, energy, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(own_virial, virial, rtol=0, atol=1e-10)
        for name, gradient in gradients.items():
            scale = max(1.0, float(gradient.abs().max()))
            torch.testing.assert_close(
                found[name].reshape(gradient.shape), gradient, rtol=0, atol=1e-10 * scale, msg=name
            )


@settings(max_examples=16, derandomize=True, deadline=None)
@given(
    st.integers(1, 4),
    st.sampled_from(sorted(BATCHES)),
    st.sampled_from(sorted(COSTS)),
    st.sampled_from(["whole", "keep", "regather"]),
)
def test_energies_forces_stress_and_gradients_are_those_of_one_process(ranks, batch, cost, weights):
    check(run_rank_threads, ranks, BATCHES[batch], COSTS[cost], weights)


@pytest.mark.parametrize("batch", ["large and small", "one isolated atom"])
@pytest.mark.parametrize("weights", ["whole", "keep", "regather"])
def test_processes_give_the_numbers_of_one(batch, weights):
    check(run_rank_processes, 3, BATCHES[batch], COSTS["rows travel"], weights)
