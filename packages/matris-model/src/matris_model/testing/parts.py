"""Law 5: what else is in the batch, in what order, and how its graph is split over ranks changes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from janus_graph import Halo, Structure, strained
from janus_graph.parts import graph_part
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
        part = graph_part(deformed, rank_of_atom, rank, _MOST_RANKS)
        turns = iter(shown)
        halo = _replayed(turns, torch.from_numpy(part.owned), torch.from_numpy(part.ghosts), structure)
        parts.append(potential(part.graph, ("energy",), halo=halo).energy)
        if next(turns, None) is not None:
            raise AssertionError(
                f"broken law: a part with {len(part.owned)} atoms asks for fewer ghost rows: {structure}"
            )
    total = torch.stack(parts).sum(dim=0)
    found, expected = (_with_gradients(energy, [positions, strain]) for energy in (total, whole))
    allowed = TOLERANCE * (1 + max(float(np.abs(values).max()) for values in expected))
    for what, a, b in zip(("energy (eV)", "forces (eV/Å)", "stress times volume (eV)"), found, expected, strict=True):
        require_close(f"how the graph is split: {what}", a, b, allowed, structure)


def takes_a_halo(potential: object) -> bool:
    """Whether a potential can be told where the rows of other ranks' atoms come from."""
    function = potential.forward if isinstance(potential, nn.Module) else potential
    return callable(function) and "halo" in inspect.signature(function).parameters


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
