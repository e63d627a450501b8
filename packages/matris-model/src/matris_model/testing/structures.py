"""What a potential is tried on unless one says otherwise."""

from __future__ import annotations

import dataclasses

import numpy as np

from janus_graph import Structure
from janus_graph.testing import sample_structures


def trial_structures() -> dict[str, Structure]:
    """Small structures of every kind, by name, all of task 0: `janus_graph.testing.sample_structures()` and some more.

    Skewed and left-handed cells, cells that are much smaller than a cutoff, every number of periodic directions, flat
    angles, perfect symmetry and none, one atom, and atoms without neighbours. No two atoms are closer than 1 Å.
    """
    thin = np.array([[2.1, 0.0, 0.3], [0.9, 1.0, -2.2], [1.9, 1.6, 0.4]])
    oblique = np.array([[3.4, 0.0, 0.9], [0.0, 0.0, 0.0], [-2.1, 0.3, 3.0]])
    two = np.array([[0.1, 0.2, 0.3], [1.7, 1.1, 2.0]])
    straight = np.array([[-1.2, 0.0, 0.0], [0.0, 0.0, 0.0], [1.3, 0.0, 0.0]])
    nowhere = np.zeros(3, dtype=bool)
    more = {
        "straight molecule": Structure(np.array([8, 6, 8]), straight, np.zeros((3, 3)), nowhere),
        "one atom in a small skewed left-handed cell": Structure(
            np.array([17]), np.array([[0.3, -4.0, 0.2]]), thin, np.ones(3, dtype=bool)
        ),
        "left-handed slab along the first and third vector": Structure(
            np.array([16, 3]), two, oblique, np.array([True, False, True])
        ),
    }
    everything = {**sample_structures(), **more}
    return {name: dataclasses.replace(structure, task=0) for name, structure in everything.items()}
