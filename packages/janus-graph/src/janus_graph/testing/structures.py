"""Small structures to try a neighbour list or a potential on."""

from __future__ import annotations

import numpy as np

from janus_graph.structure import Structure


def sample_structures() -> dict[str, Structure]:
    """Small structures of every kind, by name: what a new neighbour list or potential should be tried on first.

    No two atoms are closer than 1 Å.
    """
    skewed = np.array([[3.1, 0.2, 0.0], [-2.4, 3.3, 0.1], [1.3, -1.9, 2.9]])
    cubic = 3.6 * np.eye(3)
    face_centres = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    water = np.array([[0.0, 0.0, 0.12], [0.0, 1.06, -0.47], [0.1, -0.97, -0.52]])
    everywhere, nowhere = [True] * 3, [False] * 3
    slab = np.array([[2.9, 0.0, 0.0], [1.4, 2.5, 0.0], [0.0, 0.0, 0.0]])
    wire = np.array([[0.0, 0.0, 0.0], [0.3, 2.2, 0.4], [0.0, 0.0, 0.0]])
    two = np.array([[0.1, 0.2, 0.3], [1.7, 1.1, 2.0]])
    return {
        "one atom": Structure(np.array([1]), np.zeros((1, 3)), np.zeros((3, 3)), np.array(nowhere)),
        "atoms out of reach": Structure(
            np.array([2, 10]), np.array([[0.0, 0.0, 0.0], [90.0, 0.0, 0.0]]), np.zeros((3, 3)), np.array(nowhere)
        ),
        "molecule": Structure(np.array([8, 1, 1]), water, np.zeros((3, 3)), np.array(nowhere)),
        "charged molecule in a box": Structure(
            np.array([8, 1, 1]), water, 20 * np.eye(3), np.array(nowhere), charge=1, spin=2
        ),
        "one atom in a small cell": Structure(np.array([84]), np.ones((1, 3)), 1.9 * np.eye(3), np.array(everywhere)),
        "metal": Structure(np.full(4, 29), face_centres @ cubic, cubic, np.array(everywhere)),
        "skewed cell": Structure(np.array([14, 8]), two, skewed, np.array(everywhere), task=1),
        "left-handed cell": Structure(np.array([8, 14]), two, skewed[[1, 0, 2]], np.array(everywhere)),
        "atoms outside the cell": Structure(
            np.array([22, 8]),
            two + np.array([[7, -4, 2], [-3, 5, -9]]) @ skewed,
            skewed,
            np.array(everywhere),
        ),
        "slab without a third vector": Structure(np.array([6, 8]), two, slab, np.array([True, True, False])),
        "slab in a vacuum": Structure(
            np.array([6, 8]), two, slab + np.diag([0, 0, 15.0]), np.array([True, True, False])
        ),
        "wire": Structure(np.array([7, 5]), two, wire, np.array([False, True, False])),
    }
