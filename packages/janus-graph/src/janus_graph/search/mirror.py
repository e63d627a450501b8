"""Loops of the compiled neighbour search that make of half edges both directions, in sorted rows."""

# What numba compiles it also types.
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, check-untyped-defs=False

from __future__ import annotations

import numpy as np

from janus_graph.search.compiled import compiled


@compiled
def count_rows(first_atom, begin, end, neighbours):
    """How many edges each atom will have to atoms before it, to its own images, and to atoms after it, [3, atoms]."""
    counts = np.zeros((3, len(begin)), dtype=np.int64)
    for structure in range(len(first_atom) - 1):
        offset = first_atom[structure]
        for i in range(offset, first_atom[structure + 1]):
            for e in range(begin[i], end[i]):
                j = offset + neighbours[e]
                if j == i:
                    counts[1, i] += 2
                else:
                    counts[2, i] += 1
                    counts[0, j] += 1
    return counts


@compiled
def both_directions(first_atom, place, row_start, counts, edges, halves):
    """Edges in both directions, in rows by centre, sorted by neighbour, then shift; and where each one's reverse is.

    Two counting sorts. Atoms are visited in ascending order and hand themselves to the rows of later atoms, whose
    first parts come out sorted; these rows are visited in ascending order and hand themselves back to the last parts of
    the earlier ones. Images of one pair come in ascending order of shift, and their reverses in descending order, so
    they are gone through backwards.

    Args:
        first_atom: first atom of each structure, and one past the last.
        place: the name each atom has in the result; ascending within a structure.
        row_start: first edge of each atom.
        counts: of `count_rows`.
        edges: how many there are.
        halves: of `half_edges`.
    """
    begin, end, neighbours, half_shifts, half_lengths = halves
    index = np.empty((2, edges), dtype=np.int64)
    shifts = np.empty((edges, 3), dtype=np.int32)
    lengths = np.empty(edges, dtype=np.float64)
    reverse = np.empty(edges, dtype=np.int64)
    lower = np.empty(len(row_start), dtype=np.int64)
    upper = np.empty(len(row_start), dtype=np.int64)
    for i in range(len(row_start)):
        lower[i], upper[i] = row_start[i], row_start[i] + counts[0, i] + counts[1, i]
    for structure in range(len(first_atom) - 1):
        offset = first_atom[structure]
        for i in range(offset, first_atom[structure + 1]):
            middle = row_start[i] + counts[0, i] + counts[1, i] // 2
            images = counts[1, i] // 2
            for e in range(end[i] - 1, begin[i] - 1, -1):
                j = offset + neighbours[e]
                if j == i:
                    images -= 1
                    p, q = middle - 1 - images, middle + images
                    index[0, p], index[1, p], index[0, q], index[1, q] = place[i], place[i], place[i], place[i]
                    for k in range(3):
                        shifts[p, k], shifts[q, k] = -half_shifts[e, k], half_shifts[e, k]
                    lengths[p], lengths[q] = half_lengths[e], half_lengths[e]
                    reverse[p], reverse[q] = q, p
                else:
                    p = lower[j]
                    lower[j] += 1
                    index[0, p], index[1, p] = place[j], i
                    for k in range(3):
                        shifts[p, k] = -half_shifts[e, k]
                    lengths[p] = half_lengths[e]
        for j in range(offset, first_atom[structure + 1]):
            for p in range(row_start[j] + counts[0, j] - 1, row_start[j] - 1, -1):
                i = index[1, p]
                q = upper[i]
                upper[i] += 1
                index[1, p] = place[i]
                index[0, q], index[1, q] = place[i], place[j]
                for k in range(3):
                    shifts[q, k] = -shifts[p, k]
                lengths[q] = lengths[p]
                reverse[p], reverse[q] = q, p
    return index, shifts, lengths, reverse
