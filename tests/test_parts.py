"""The parts fit together without the trainer's loop, and the trainer works with other people's parts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

from janus_comm import (
    Chain,
    SingleRank,
    all_reduce,
    make_compressed_exchange,
    make_exchange,
    make_halo,
    plan_compression,
    plan_halo,
)
from janus_comm.testing import run_rank_threads
from janus_graph import AtomGraph, build_graph
from janus_graph.ase import structure_from_ase
from janus_graph.lennard_jones import LennardJones
from janus_graph.parts import graph_part
from matris_model import MatRISMoE

PARTS = 3


def model_and_graph() -> tuple[MatRISMoE, AtomGraph]:
    """A stirred model and a rattled crystal of two elements."""
    model = MatRISMoE.from_preset(
        "nano", blocks=2, width=16, edge_width=8, heads=2, experts=4, expert_hidden=8, cutoff=4.0, near_cutoff=3.3
    ).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    atoms = bulk("NaCl", "rocksalt", a=5.2, cubic=True).repeat((2, 1, 1))
    atoms.rattle(0.1, seed=0)
    return model, build_graph([structure_from_ase(atoms)], 4.0, 3.3)


@pytest.mark.parametrize(
    ("dtype", "compressed", "tolerance"),
    # Compressed, rows of each of the two blocks are rounded to 2⁻¹¹ on their way there and their cotangents back.
    [(torch.float64, False, 1e-10), (torch.float32, False, 1e-5), (torch.float32, True, 4 * 2.0**-11)],
)
def test_a_structure_cut_over_ranks_gives_the_numbers_of_one(dtype, compressed, tolerance):
    model, graph = model_and_graph()
    model = model.to(dtype)
    weights = torch.randn(graph.atoms, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = model(graph, ("energy", "forces", "stress"))
    ((whole.forces * weights).sum() + whole.stress.square().sum() + whole.energy.sum()).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    owner = np.random.default_rng(0).integers(0, PARTS, graph.atoms)
    parts = [graph_part(graph, owner, part, PARTS) for part in range(PARTS)]

    # Made here: rank threads share one random state, and would draw each other's numbers.
    replicas = [model_and_graph()[0].to(dtype) for _ in range(PARTS)]

    def on_rank(communicator):
        replica = replicas[communicator.rank]
        held = parts[communicator.rank]
        part, owned = held.graph, torch.from_numpy(held.owned)
        chain = Chain(part.positions.requires_grad_())
        exchange = make_exchange(communicator, chain)
        plan = plan_halo(part.atoms, held.send_rows, held.receive_counts)
        if compressed:
            sent, received = part.atomic_numbers[plan.send_rows], graph.atomic_numbers[torch.from_numpy(held.ghosts)]
            scales = plan_compression(communicator.rank, plan.send_counts, sent, plan.receive_counts, received)
            exchange = make_compressed_exchange(communicator, scales, chain)
        found = replica(part, ("energy", "forces", "stress"), halo=make_halo(plan, exchange))
        stress = all_reduce(found.stress, communicator, chain)
        share = (found.forces * weights[owned]).sum() + found.energy.sum() + stress.square().sum() / PARTS
        share.backward()
        return owned, found.forces.detach(), found.energy.detach(), {
            name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in replica.named_parameters()
        }  # fmt: skip

    results = run_rank_threads(PARTS, on_rank)
    forces = torch.zeros_like(whole.forces)
    for owned, own_forces, _, _ in results:
        forces[owned] = own_forces
    largest = float(whole.forces.detach().abs().max())
    torch.testing.assert_close(forces, whole.forces.detach(), rtol=0, atol=tolerance * largest)
    energy = sum(energy for _, _, energy, _ in results)
    torch.testing.assert_close(energy, whole.energy.detach(), rtol=tolerance, atol=tolerance * graph.atoms)
    for name, gradient in expected.items():
        total = sum(gradients[name] for *_, gradients in results)
        wanted = torch.zeros_like(total) if gradient is None else gradient
        torch.testing.assert_close(total, wanted, rtol=10 * tolerance, atol=tolerance * (1 + float(wanted.abs().max())))


def test_the_trainer_trains_any_potential(data_file: Path, tmp_path: Path):
    from janus_train import Recipe, load_config, train

    def save(model, path, about):
        torch.save(model.state_dict(), path / "lennard_jones.pt")

    def load(path):
        model = LennardJones(0.1, 2.0, 5.0)
        model.load_state_dict(torch.load(path / "lennard_jones.pt", weights_only=True))
        return model

    def recipe(config, data, statistics, seed):
        model = LennardJones(0.1, 2.0, 5.0)
        return Recipe(model, model.cutoff, model.near_cutoff, save, load)

    config = load_config(None, [
        f"data.train={data_file}", f"run.dir={tmp_path / 'run'}", "run.max_steps=120", "run.val_every=40",
        "run.dtype=float64", "optim.lr=0.05", "optim.warmup_steps=1", "data.batch_edges=3000",
    ])  # fmt: skip
    directory = train(config, recipe)
    # The labels come from this very form of potential with ε = 0.3 eV and σ = 2.3 Å, up to how it ends at the cutoff.
    trained = load(directory)
    assert trained.sigma.item() == pytest.approx(2.3, rel=0.03)
    assert trained.epsilon.item() == pytest.approx(0.3, rel=0.15)


def test_gradients_can_be_computed_without_the_loop(data_file: Path):
    from janus_train import Config, ReplicatedStep
    from janus_train.data.batch import FrameSource
    from janus_train.data.read import read_frames

    frames = read_frames(data_file, Config().data.keys)
    model = LennardJones(0.1, 2.0, 5.0)
    source = FrameSource(frames, model.cutoff, model.near_cutoff)

    def gradients(of):
        step = ReplicatedStep(of, {"energy": 1.0, "forces": 2.0}, SingleRank())
        return step.gradients(step.prepare(source, range(4)))

    result = gradients(model)
    assert result.loss == pytest.approx(result.terms["energy"] + 2 * result.terms["forces"])
    step = 1e-5
    losses = [gradients(LennardJones(0.1, 2.0 + sign * step, 5.0)).loss for sign in (1, -1)]
    assert model.sigma.grad.item() == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("janus_train", {"matplotlib", "pydantic", "typer", "rich", "matris_model", "scipy", "ase.calculators"}),
        (
            "janus_train.run",
            {"matplotlib", "typer", "rich", "torch._dynamo", "torch.distributed.checkpoint.state_dict"},
        ),
    ],
)
def test_importing_the_trainer_imports_nothing_heavy_beside_torch(module: str, heavy: set[str]):
    import subprocess
    import sys

    code = f"import sys, {module}; print(' '.join(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(finished.stdout.split())
    assert module in loaded
    assert not loaded & heavy
