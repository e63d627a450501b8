"""Both attentions by loops over pairs, and neighbourhoods of any shape, for the tests of kernels."""

import itertools

import numpy as np
import torch

from janus_graph import EdgeTables, edge_tables, near_tables

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def near_by_loops(starts, heads, rows, directions, coefficients):
    """Attention among the near edges of each atom, one pair at a time."""
    size = rows.shape[1] // heads // 3
    query, key, value = rows.reshape(-1, 3, heads, size).unbind(1)
    units, envelope = directions[:, :3], directions[:, 3]
    results = []
    for start, end in itertools.pairwise(starts):
        for p, head in itertools.product(range(start, end), range(heads)):
            total, taken = torch.ones_like(envelope[p]), torch.zeros_like(value[p, head])
            for q in range(start, end):
                if q == p:
                    continue
                legendre = legendre_of((units[p] * units[q]).sum(), coefficients.shape[1])
                bias = (coefficients[head] * legendre).sum()
                angular = (coefficients[heads + head] * legendre).sum()
                weight = envelope[q] * torch.exp((query[p, head] * key[q, head]).sum() / size**0.5 + bias)
                total, taken = total + weight, taken + weight * angular * value[q, head]
            results.append(envelope[p] * taken / total)
    return torch.stack(results).reshape(len(rows), heads * size) if results else rows[:, : heads * size] * 0.0


def legendre_of(cosine, functions):
    """P_0 … P_{functions−1} from their coefficients in powers, by numpy."""
    powers = torch.stack([cosine**n for n in range(functions)])
    columns = [np.polynomial.legendre.leg2poly(np.eye(functions)[degree]) for degree in range(functions)]
    matrix = np.array([np.pad(column, (0, functions - len(column))) for column in columns])
    return torch.from_numpy(matrix).to(powers) @ powers


def edges_by_loops(starts, query, messages, bias, envelope):
    """What each atom gathers from its messages, one edge at a time."""
    results = []
    for atom, (start, end) in enumerate(itertools.pairwise(starts)):
        for head in range(query.shape[1]):
            total, gathered = torch.ones_like(query[0, 0, 0]), query[atom, head] * 0.0
            for k in range(start, end):
                score = 10 * torch.tanh((query[atom, head] * messages[k]).sum() / 10) + bias[k, head]
                weight = envelope[k] * torch.exp(score)
                total, gathered = total + weight, gathered + weight * messages[k]
            results.append(gathered / total)
    return torch.stack(results).reshape(query.shape) if results else query * 0.0


def plan_of(counts: list[int], near: bool) -> EdgeTables:
    """Where the edges are of atoms that have so many."""
    centre = np.repeat(np.arange(len(counts)), counts)
    if near:
        return near_tables(centre, np.ones(len(centre), dtype=bool), len(counts)).to(DEVICE)
    return edge_tables(centre, len(counts)).to(DEVICE)


def normal(*shape: int, seed: int, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def near_inputs(plan, heads, size, functions, seed=0):
    """Rows, directions and coefficients; envelopes between 0 and 1, one of them zero."""
    near = len(plan.edges)
    directions = normal(near, 4, seed=seed + 1)
    units = directions[:, :3] / directions[:, :3].norm(dim=1, keepdim=True)
    envelope = torch.sigmoid(directions[:, 3:])
    envelope[:1] = 0.0
    rows, coefficients = normal(near, 3 * heads * size, seed=seed), normal(2 * heads, functions, seed=seed + 2)
    return rows, torch.cat([units, envelope], dim=1), coefficients


def edge_inputs(plan, heads, width, seed=0):
    """Queries, messages, logits and envelopes; one envelope is zero."""
    atoms, edges = len(plan.rows), len(plan.edges)
    envelope = torch.sigmoid(normal(edges, seed=seed + 3))
    envelope[:1] = 0.0
    return (
        3 * normal(atoms, heads, width, seed=seed),
        normal(edges, width, seed=seed + 1),
        normal(edges, heads, seed=seed + 2),
        envelope,
    )
