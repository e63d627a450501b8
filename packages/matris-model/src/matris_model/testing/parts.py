"""Law 5: what else is in the batch, in what order, and how its graph is split over ranks changes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from janus_graph import AtomGraph, Halo, Structure, edge_tables, near_tables, strained
from matris_model.testing.candidate import TOLERANCE, Candidate, require_close, require_same

_MOST_RANKS = 4


def same_in_every_batch(candidate: Candidate, structures: Sequence[Structure], rng: np.random.Generator) -> None:
    """What else is in the batch, and in what order, changes nothing for a structure."""
    alone = [candidate.alone(structure) for structure in structures]
    for order in (np.arange(len(structures)), rng.permutation(len(structures))):
        together = candidate([structures[place] for place in order])
        for place, found in zip(order, together, strict=True):
            require_same("what else is in the batch", found, alone[place], structures[place])


def same_however_it_is_split(candidate: Candidate, structure: Structure, rng: np.random.Generator) -> None:
    """A potential that takes a `halo` has the same energy, forces and stress on parts of a graph as on the whole.

    The atoms are dealt to one to four ranks, some of which may get none. Ranks are played one after the other: where
    one asks for ghost rows it gets those that the whole graph's turn showed at that point, with their history, and its
    own rows have to be the same as there. Every rank has to ask as often as the others, or they would wait for ever.
    Other potentials have nothing to show.
    """
    if not takes_a_halo(candidate.potential):
        return
    potential: Any = candidate.potential
    graph = candidate.graph([structure])
    rank_of_atom = rng.integers(0, rng.integers(1, _MOST_RANKS + 1), size=graph.atoms)
    positions = graph.positions.clone().requires_grad_()
    strain = torch.zeros_like(graph.cells, requires_grad=True)
    deformed = strained(graph.replace(positions=positions), strain)
    shown: list[Tensor] = []

    def recorded(rows: Tensor) -> Tensor:
        shown.append(rows)
        return rows

    whole = potential(deformed, ("energy",), halo=recorded).energy
    parts = []
    for rank in range(_MOST_RANKS):
        owned = np.flatnonzero(rank_of_atom == rank)
        part, ghosts = part_of(deformed, owned)
        turns = iter(shown)
        halo = _replayed(turns, torch.from_numpy(owned), torch.from_numpy(ghosts), structure)
        parts.append(potential(part, ("energy",), halo=halo).energy)
        if next(turns, None) is not None:
            raise AssertionError(f"broken law: a part with {len(owned)} atoms asks for fewer ghost rows: {structure}")
    total = torch.stack(parts).sum(dim=0)
    found, expected = (_with_gradients(energy, [positions, strain]) for energy in (total, whole))
    allowed = TOLERANCE * (1 + max(float(np.abs(values).max()) for values in expected))
    for what, a, b in zip(("energy (eV)", "forces (eV/Å)", "stress times volume (eV)"), found, expected, strict=True):
        require_close(f"how the graph is split: {what}", a, b, allowed, structure)


def takes_a_halo(potential: object) -> bool:
    """Whether a potential can be told where the rows of other ranks' atoms come from."""
    function = potential.forward if isinstance(potential, nn.Module) else potential
    return callable(function) and "halo" in inspect.signature(function).parameters


def part_of(graph: AtomGraph, owned: Int64[np.ndarray, "owned"]) -> tuple[AtomGraph, Int64[np.ndarray, "ghosts"]]:
    """The graph of some of the atoms, with all edges centred on them; and which atoms its ghost rows stand for.

    Args:
        graph: a whole graph.
        owned: which of its atoms, ascending.
    """
    centre, neighbour = graph.edge_index.numpy()
    kept = np.flatnonzero(np.isin(centre, owned))
    ghosts = np.setdiff1d(neighbour[kept], owned)
    place = np.full(graph.atoms, -1)
    place[owned] = np.arange(len(owned))
    place[ghosts] = len(owned) + np.arange(len(ghosts))
    numbers = graph.atomic_numbers.numpy()[owned]
    elements, atoms_per_element = np.unique(numbers, return_counts=True)
    edge_elements = numbers[place[centre[kept]]]
    near = np.zeros(graph.edges, dtype=bool)
    near[graph.near.edges.numpy()] = True
    part = graph.replace(
        positions=graph.positions[owned],
        atomic_numbers=graph.atomic_numbers[owned],
        structure_index=graph.structure_index[owned],
        input_index=torch.arange(len(owned)),
        edge_index=torch.from_numpy(np.stack([place[centre[kept]], place[neighbour[kept]]])),
        edge_shifts=graph.edge_shifts[kept],
        elements=tuple(elements.tolist()),
        atoms_per_element=tuple(atoms_per_element.tolist()),
        edges_per_element=tuple(int((edge_elements == z).sum()) for z in elements),
        around=edge_tables(place[centre[kept]], len(owned)),
        near=near_tables(place[centre[kept]], near[kept], len(owned)),
    )
    return part, ghosts


def _replayed(turns: Iterator[Tensor], owned: Tensor, ghosts: Tensor, structure: Structure) -> Halo:
    def halo(rows: Tensor) -> Tensor:
        of_whole = next(turns, None)
        if of_whole is None:
            raise AssertionError(f"broken law: a part with {len(owned)} atoms asks for more ghost rows: {structure}")
        expected = of_whole.index_select(0, owned).detach().numpy()
        allowed = TOLERANCE * (1 + float(np.abs(expected).max(initial=0.0)))
        require_close("how the graph is split: rows", rows.detach().numpy(), expected, allowed, structure)
        return torch.cat([rows, of_whole.index_select(0, ghosts)])

    return halo


def _with_gradients(energy: Tensor, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    gradients = torch.autograd.grad(energy.sum(), inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
    return [tensor.detach().numpy() for tensor in (energy, *gradients)]
