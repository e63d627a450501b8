"""Batches with the element mixtures of real data sets, as integers: how many rows each element has on each rank.

Nothing is drawn from a data set. Formulas and shares are those that such sets are made of: perovskites, spinels,
layered oxides, phosphates and some chalcogenides and halides; small organic molecules of H, C, N, O and a few of S, P
and halogens; and alloys of one to five metals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from janus_moe.selection import ELEMENTS

Formula = dict[int, int]
"""Atoms of each element."""

_LARGE_CATIONS = (3, 11, 19, 37, 55, 12, 20, 38, 56, 13, 31, 39, 57, 58, 60, 64)
_SMALL_CATIONS = (22, 23, 24, 25, 26, 27, 28, 29, 30, 40, 41, 42, 44, 46, 47, 50, 73, 74, 14, 32, 15, 16, 51, 83)
_OTHER_ANIONS = (9, 16, 17, 7, 34)
_METALS = (
    *(3, 4, 11, 12, 13, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 39, 40),
    *(41, 42, 44, 45, 46, 47, 48, 49, 50, 57, 72, 73, 74, 75, 76, 77, 78, 79, 82, 83),
)


@dataclass(frozen=True)
class Mixture:
    """How structures of a kind are drawn.

    Attributes:
        formula: draws the atoms of one structure.
        neighbours: edges of an atom within 6 Å, about.
    """

    formula: Callable[[np.random.Generator], Formula]
    neighbours: int


def _oxide(random: np.random.Generator) -> Formula:
    a, b, c = random.choice(_LARGE_CATIONS), random.choice(_SMALL_CATIONS), random.choice(_SMALL_CATIONS)
    kinds = (
        ((a, 1), (b, 1), (8, 3)),
        ((a, 1), (b, 2), (8, 4)),
        ((3, 1), (b, 1), (8, 2)),
        ((3, 1), (b, 1), (15, 1), (8, 4)),
        ((b, 2), (8, 3)),
        ((a, 2), (b, 1), (c, 1), (8, 6)),
        ((a, 2), (b, 1), (c, 2), (8, 7), (1, 2)),
        ((a, 1), (b, 1), (random.choice(_OTHER_ANIONS), 3)),
    )
    return _added(kinds[random.integers(len(kinds))], int(random.choice((1, 2, 4, 4, 8, 12))))


def _molecule(random: np.random.Generator) -> Formula:
    carbon = int(random.integers(2, 30))
    parts = [(6, carbon), (1, int(carbon * random.uniform(0.8, 2.2)) + 1)]
    parts += [(7, random.binomial(carbon, 0.16)), (8, random.binomial(carbon, 0.2))]
    parts += [(z, random.binomial(1, share)) for z, share in ((16, 0.2), (9, 0.15), (17, 0.12), (15, 0.04), (35, 0.03))]
    return _added(parts, 1)


def _alloy(random: np.random.Generator) -> Formula:
    metals = random.choice(_METALS, int(random.choice((1, 2, 2, 3, 3, 4, 5))), replace=False)
    shares = random.dirichlet(np.full(len(metals), 2.0)) * random.choice((4, 8, 16, 32, 54))
    return _added([(z, max(1, round(share))) for z, share in zip(metals, shares, strict=True)], 1)


def _added(parts: object, times: int) -> Formula:
    formula: Formula = {}
    for z, count in parts:  # type: ignore[attr-defined]
        if count:
            formula[int(z)] = formula.get(int(z), 0) + int(count) * times
    return formula


MIXTURES = {"oxides": Mixture(_oxide, 62), "molecules": Mixture(_molecule, 22), "alloys": Mixture(_alloy, 55)}
"""Element mixtures: oxides and the like, half of all atoms oxygen; molecules, half hydrogen; forty metals."""


def rows_of_batch(
    mixture: Mixture, ranks: int, atoms: int, seed: int
) -> tuple[Int[np.ndarray, "ranks elements"], Int[np.ndarray, "ranks elements"]]:
    """Edges and atoms of every element on every rank, for a batch whose structures are whole and spread by their edges.

    Args:
        mixture: what is drawn.
        ranks: of the unit.
        atoms: of each rank, about.
        seed: the same seed gives the same batch.
    """
    random = np.random.default_rng(seed)
    structures: list[tuple[Formula, float]] = []
    missing = ranks * atoms
    while missing > 0:
        structures.append((mixture.formula(random), mixture.neighbours * random.uniform(0.8, 1.2)))
        missing -= sum(structures[-1][0].values())
    structures.sort(key=lambda one: -sum(one[0].values()) * one[1])
    table = np.zeros((2, ranks, ELEMENTS), dtype=np.int64)
    filled = np.zeros(ranks)
    for formula, neighbours in structures:
        rank = int(filled.argmin())
        for z, count in formula.items():
            table[:, rank, z] += int(count * neighbours), count
            filled[rank] += count * neighbours
    return table[0], table[1]
