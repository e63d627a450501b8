"""Structures that hypothesis draws, from a single atom with nothing around it upwards."""

import itertools

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from janus_graph import Structure

ELEMENTS = (1, 6, 8, 14, 26, 118)

seeds = st.integers(min_value=0, max_value=2**32 - 1)
labels = st.fixed_dictionaries(
    {"charge": st.integers(-3, 3), "spin": st.integers(1, 5), "task": st.integers(min_value=0, max_value=3)}
)


def numbers(low: float, high: float, on_a_grid: bool) -> st.SearchStrategy[float]:
    """Coordinates: sixteenths, whose sums and products have no rounding and often coincide, or any numbers."""
    if on_a_grid:
        return st.integers(round(16 * low), round(16 * high)).map(lambda n: n / 16)
    return st.floats(low, high, allow_subnormal=False)


@st.composite
def cells(draw: st.DrawFn, on_a_grid: bool, shortest: float = 1.5) -> np.ndarray:
    """Three independent lattice vectors, skewed, of either hand."""
    skew = np.eye(3)
    skew[np.tril_indices(3, -1)] = draw(arrays(np.float64, 3, elements=numbers(-1.5, 1.5, on_a_grid)))
    lengths = draw(arrays(np.float64, 3, elements=numbers(shortest, 6.0, on_a_grid)))
    signs = draw(arrays(np.int64, 3, elements=st.sampled_from((1, -1))))
    return (skew * lengths[:, None] * signs)[list(draw(st.permutations(range(3))))]


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    """Any structure a neighbour list must cope with; atoms may be outside the cell or on top of each other."""
    on_a_grid = draw(st.booleans())
    atoms = draw(st.integers(1, 4))
    periodic = draw(arrays(np.bool_, 3))
    cell = draw(cells(on_a_grid))
    for row in np.flatnonzero(~periodic):
        # A vector that nothing repeats along may be anything, also no vector at all or one that is not independent.
        cell[row] = draw(st.sampled_from([cell[row], np.zeros(3), cell[(row + 1) % 3]]))
    positions = draw(arrays(np.float64, (atoms, 3), elements=numbers(-9.0, 9.0, on_a_grid)))
    elements = draw(arrays(np.int64, atoms, elements=st.sampled_from(ELEMENTS)))
    return Structure(elements, positions, cell, periodic, **draw(labels))


cutoffs = st.one_of(st.integers(1, 18).map(lambda n: n / 4), st.floats(0.25, 4.5))


@st.composite
def spaced_structures(draw: st.DrawFn, repeats: st.SearchStrategy[list[bool]] | None = None) -> Structure:
    """Structures a pair potential can be evaluated on: atoms at least 1.2 Å apart, images included."""
    periodic = np.array(draw(repeats if repeats is not None else st.lists(st.booleans(), min_size=3, max_size=3)))
    corners = st.sampled_from(list(itertools.product(range(2), repeat=3)))
    places = np.array(draw(st.lists(corners, min_size=1, max_size=4, unique=True)))
    rng = np.random.default_rng(draw(seeds))
    spacing = np.diag(rng.uniform(2.0, 2.4, size=3))
    spacing[np.tril_indices(3, -1)] = rng.uniform(-0.2, 0.2, size=3)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    cell = 2 * spacing @ rotation
    jitter = rng.uniform(-0.2, 0.2, size=places.shape)
    outside = rng.integers(-2, 3, size=places.shape) * periodic
    positions = places @ spacing @ rotation + jitter + outside @ cell
    if draw(st.booleans()):
        cell = np.where(periodic[:, None], cell, 0.0)
    elements = draw(arrays(np.int64, len(places), elements=st.sampled_from(ELEMENTS)))
    return Structure(elements, positions, cell, periodic, **draw(labels))


crystals = spaced_structures(repeats=st.just([True, True, True]))
not_crystals = spaced_structures(
    repeats=st.sampled_from([list(p) for p in itertools.product([False, True], repeat=3) if not all(p)])
)
batches = st.lists(spaced_structures(), min_size=1, max_size=4)
