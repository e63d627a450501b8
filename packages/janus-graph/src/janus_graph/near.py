"""Three-body terms as index pairs: ordered pairs of near edges that share their centre."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64


def near_pairs(centre: Int64[np.ndarray, "edges"], near: Bool[np.ndarray, "edges"]) -> Int64[np.ndarray, "2 pairs"]:
    """All ordered pairs (p, q), p ≠ q, of near edges with the same centre, sorted by p, then q.

    Args:
        centre: centre of every edge, ascending.
        near: which edges are near.
    """
    near_edge = np.flatnonzero(near)
    near_centre = centre[near_edge]
    atoms, inverse, count = np.unique(near_centre, return_inverse=True, return_counts=True)
    first = np.cumsum(count) - count if len(atoms) else count
    partners = count[inverse]
    p = np.repeat(np.arange(len(near_edge)), partners)
    within = np.arange(len(p)) - np.repeat(np.cumsum(partners) - partners, partners)
    q = np.repeat(first[inverse], partners) + within
    different = p != q
    return np.stack([near_edge[p[different]], near_edge[q[different]]])
