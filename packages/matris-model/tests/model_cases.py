"""Small stirred models and structures of every shape, for the tests of this package."""

import numpy as np
import torch
from hypothesis import strategies as st

from janus_graph import Structure
from matris_model import MatRISMoE, MatRISMoEConfig

TINY = MatRISMoEConfig(
    blocks=2,
    width=16,
    edge_width=8,
    heads=2,
    experts=4,
    top_k=2,
    expert_hidden=8,
    message_hidden=8,
    feature_hidden=16,
    structure_width=8,
    radial_functions=6,
    angular_functions=4,
    cutoff=4.0,
    near_cutoff=3.0,
    magnetic_moments=True,
    tasks=("left", "right"),
)

NOWHERE, EVERYWHERE = (False, False, False), (True, True, True)


def stirred(config: MatRISMoEConfig = TINY, seed: int = 0) -> MatRISMoE:
    """A model in float64 in which no parameter and no buffer sits where it starts: nothing is hidden by a zero."""
    model = MatRISMoE(config, seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        model.references.copy_(torch.randn(model.references.shape, generator=generator, dtype=torch.float64))
        model.scales.copy_(0.5 + torch.rand(model.scales.shape, generator=generator, dtype=torch.float64))
    return model


def molecule(numbers, positions, **labels) -> Structure:
    return Structure(np.array(numbers), np.array(positions, dtype=float), np.zeros((3, 3)), np.array(NOWHERE), **labels)


def random_structure(seed, atoms, grid, periodic, left_handed=False, skewed=False, elements=(1, 6, 8, 26)):
    """Atoms on places of a grid of 1.9 Å that is jittered and bent, so that none are on top of each other."""
    rng = np.random.default_rng(seed)
    places = np.array(list(np.ndindex(*grid)))
    atoms = min(atoms, len(places))
    chosen = rng.permutation(len(places))[:atoms]
    bend = np.eye(3) + rng.uniform(-0.15, 0.15, size=(3, 3))
    positions = (1.9 * places[chosen] + rng.uniform(-0.25, 0.25, size=(atoms, 3))) @ bend
    cell = 1.9 * np.diag(grid) @ bend
    periodic = np.array(periodic)
    first, second = np.flatnonzero(periodic)[:2] if periodic.sum() >= 2 else (0, 0)
    if skewed and first != second:
        cell[first] += cell[second]
    if left_handed:
        cell[first] *= -1
    cell[~periodic] = 0.0
    return Structure(
        rng.choice(elements, size=atoms),
        positions,
        cell,
        periodic,
        charge=int(rng.integers(-2, 3)),
        spin=int(rng.integers(1, 4)),
        task=int(rng.integers(0, 2)),
    )


structures = st.builds(
    random_structure,
    seed=st.integers(0, 10_000),
    atoms=st.integers(1, 4),
    grid=st.tuples(*[st.integers(1, 2)] * 3),
    periodic=st.tuples(*[st.booleans()] * 3),
    left_handed=st.booleans(),
    skewed=st.booleans(),
)
