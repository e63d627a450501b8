"""Loops of the compiled neighbour search that find half of the edges.

A half edge (i, j, S) has i < j, or i = j and S lexicographically above zero. Its vector is
`(x_j − x_i) + ((S_0 h_0 + S_1 h_1) + S_2 h_2)` with every operation rounded once, which reversing an edge negates term
by term: both directions have one length, to the last bit, and it is the one any other search here finds.

Candidates are looked for in a rotated frame and a hair beyond the cutoff; the exact test is the one above.
"""

# What numba compiles it also types.
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, check-untyped-defs=False

from __future__ import annotations

import math

import numpy as np

from janus_graph.search.compiled import compiled

# Bins are at least this part of the cutoff wide.
_BIN_WIDTH = 0.5
# Bins may be at most so many per atom: a gas in a wide box must not cost memory for its emptiness.
_BINS_PER_ATOM = 2.0
# Rounding of a coordinate in the rotated frame, over the largest length that enters it (about 450 ulp).
_ROUNDING = 1e-13


@compiled
def frame_of_cell(cell, periodic):
    """Orthonormal rows U and lower-triangular reach L: periodic row k of the cell is Σ_m L[k, m] U[m], m ≥ k.

    Row 2 lies along U[2], row 1 in the plane of U[1] and U[2]. Where nothing repeats, U[k] is at right angles to all
    that repeats, and L[k] is a unit step along it.
    """
    axes = np.zeros((3, 3))
    triangle = np.zeros((3, 3))
    known = np.zeros(3, dtype=np.bool_)
    for step in range(6):
        k = 2 - step % 3
        if periodic[k] != (step < 3):
            continue
        longest = -1.0
        for trial in range(1 if periodic[k] else 3):
            x, y, z = cell[k, 0], cell[k, 1], cell[k, 2]
            if not periodic[k]:
                x, y, z = 1.0 * (trial == 0), 1.0 * (trial == 1), 1.0 * (trial == 2)
            for m in (0, 1, 2, 0, 1, 2):  # twice is enough for full precision
                if known[m]:
                    along = x * axes[m, 0] + y * axes[m, 1] + z * axes[m, 2]
                    x, y, z = x - along * axes[m, 0], y - along * axes[m, 1], z - along * axes[m, 2]
            length = math.sqrt(x * x + y * y + z * z)
            if length > longest:
                longest = length
                axes[k, 0], axes[k, 1], axes[k, 2] = x / length, y / length, z / length
        known[k] = True
    for k in range(3):
        triangle[k, k] = 1.0
        if periodic[k]:
            for m in range(k, 3):
                triangle[k, m] = cell[k, 0] * axes[m, 0] + cell[k, 1] * axes[m, 1] + cell[k, 2] * axes[m, 2]
    return axes, triangle


@compiled
def search_radius(rotated, triangle, periodic, cutoff):
    """The cutoff plus what rounding could hide in the rotated frame, from the largest lengths that are added up."""
    extent = 0.0
    for i in range(len(rotated)):
        for k in range(3):
            extent = max(extent, abs(rotated[i, k]))
    extent *= 2.0
    size = extent
    steps = np.zeros(3)
    for k in range(3):
        if periodic[k]:
            reach = cutoff + extent
            for m in range(k):
                reach += steps[m] * abs(triangle[m, k])
            steps[k] = reach / abs(triangle[k, k]) + 1.0
            size += steps[k] * (abs(triangle[k, 0]) + abs(triangle[k, 1]) + abs(triangle[k, 2]))
    return cutoff * (1 + 1e-9) + _ROUNDING * size


@compiled
def half_edges_by_pairs(positions, cell, periodic, cutoff, triangle, rotated, out, begin, end):
    """Half edges of a small structure, pair by pair, each with exactly the shifts that can be in reach.

    Args:
        out: first free place, and arrays for neighbours, shifts and lengths.
        begin: filled with the place of the first half edge of each atom.
        end: filled with the place after the last.

    Returns:
        The next free place, or −1 where the arrays are too short.
    """
    m, neighbours, shifts, lengths = out
    atoms = len(positions)
    radius = search_radius(rotated, triangle, periodic, cutoff)
    squared = radius * radius
    a00, a01, a02 = triangle[0, 0], triangle[0, 1], triangle[0, 2]
    a11, a12, a22 = triangle[1, 1], triangle[1, 2], triangle[2, 2]
    per0, per1, per2 = 1.0 / a00, 1.0 / a11, 1.0 / a22
    for i in range(atoms):
        begin[i] = m
        for j in range(i, atoms):
            d0, d1, d2 = rotated[j, 0] - rotated[i, 0], rotated[j, 1] - rotated[i, 1], rotated[j, 2] - rotated[i, 2]
            x, y, z = (
                positions[j, 0] - positions[i, 0],
                positions[j, 1] - positions[i, 1],
                positions[j, 2] - positions[i, 2],
            )
            low0, high0 = 0, 0
            if periodic[0]:
                low0, high0 = math.ceil((-radius - d0) * per0), math.floor((radius - d0) * per0)
            if i == j:
                low0 = 0
            for s0 in range(low0, high0 + 1):
                v0 = d0 + s0 * a00
                left1 = squared - v0 * v0
                if left1 < 0.0:
                    continue
                c1, c2 = d1 + s0 * a01, d2 + s0 * a02
                low1, high1 = 0, 0
                if periodic[1]:
                    width = math.sqrt(left1)
                    low1, high1 = math.ceil((-width - c1) * per1), math.floor((width - c1) * per1)
                if i == j and s0 == 0:
                    low1 = 0
                for s1 in range(low1, high1 + 1):
                    v1 = c1 + s1 * a11
                    left2 = left1 - v1 * v1
                    if left2 < 0.0:
                        continue
                    c = c2 + s1 * a12
                    low2, high2 = 0, 0
                    if periodic[2]:
                        width = math.sqrt(left2)
                        low2, high2 = math.ceil((-width - c) * per2), math.floor((width - c) * per2)
                    if i == j and s0 == 0 and s1 == 0:
                        low2 = 1
                    elif not periodic[2] and c * c > left2:
                        continue
                    f0, f1 = float(s0), float(s1)
                    p, q, r = (
                        f0 * cell[0, 0] + f1 * cell[1, 0],
                        f0 * cell[0, 1] + f1 * cell[1, 1],
                        f0 * cell[0, 2] + f1 * cell[1, 2],
                    )
                    if m + high2 - low2 >= len(lengths):
                        return -1
                    for s2 in range(low2, high2 + 1):
                        f2 = float(s2)
                        u, v, w = x + (p + f2 * cell[2, 0]), y + (q + f2 * cell[2, 1]), z + (r + f2 * cell[2, 2])
                        length = math.sqrt((u * u + v * v) + w * w)
                        if length < cutoff:
                            neighbours[m] = j
                            shifts[m, 0], shifts[m, 1], shifts[m, 2] = s0, s1, s2
                            lengths[m] = length
                            m += 1
        end[i] = m
    return m


@compiled
def place_in_bins(triangle, periodic, rotated, radius):
    """Which bin each atom is in, bin by bin: counts of bins, reach in bins, bins, wraps, and wrapped coordinates.

    Returns:
        Bins along each axis, how many bins away a neighbour can be, first atom of each bin (and one past the last),
        atoms in the order of their bins, their bins, in how many cells they were moved to come into the home cell, and
        where they are then in the rotated frame.
    """
    atoms = len(rotated)
    fractions = np.empty((atoms, 3))
    for i in range(atoms):
        f0 = rotated[i, 0] / triangle[0, 0]
        f1 = (rotated[i, 1] - f0 * triangle[0, 1]) / triangle[1, 1]
        f2 = (rotated[i, 2] - f0 * triangle[0, 2] - f1 * triangle[1, 2]) / triangle[2, 2]
        fractions[i, 0], fractions[i, 1], fractions[i, 2] = f0, f1, f2
    # Distances between lattice planes: one over the lengths of the columns of the inverse of the triangle.
    height, lowest, span = np.empty(3), np.zeros(3), np.ones(3)
    a = 1.0 / triangle[0, 0]
    b = -a * triangle[0, 1] / triangle[1, 1]
    c = -(a * triangle[0, 2] + b * triangle[1, 2]) / triangle[2, 2]
    d = 1.0 / triangle[1, 1]
    e = -d * triangle[1, 2] / triangle[2, 2]
    f = 1.0 / triangle[2, 2]
    height[0], height[1], height[2] = 1 / abs(a), 1 / math.sqrt(b * b + d * d), 1 / math.sqrt(c * c + e * e + f * f)
    for k in range(3):
        if not periodic[k]:
            lowest[k] = highest = fractions[0, k]
            for i in range(1, atoms):
                lowest[k], highest = min(lowest[k], fractions[i, k]), max(highest, fractions[i, k])
            span[k] = max(highest - lowest[k], 1e-3 * radius)
            height[k] = span[k]
    bins = np.empty(3, dtype=np.int64)
    for k in range(3):
        bins[k] = int(max(1.0, min(height[k] / (_BIN_WIDTH * radius), 2.0**20)))
    most = _BINS_PER_ATOM * atoms + 27.0
    while float(bins[0]) * float(bins[1]) * float(bins[2]) > most:
        widest = 0
        for k in range(1, 3):
            if bins[k] > bins[widest]:
                widest = k
        bins[widest] = (bins[widest] + 1) // 2
    reach = np.empty(3, dtype=np.int64)
    for k in range(3):
        reach[k] = math.ceil(radius * bins[k] / height[k])
    wraps = np.zeros((atoms, 3), dtype=np.int32)
    home = np.empty(atoms, dtype=np.int64)
    first = np.zeros(bins[0] * bins[1] * bins[2] + 1, dtype=np.int64)
    for i in range(atoms):
        index = 0
        for k in range(3):
            fraction = fractions[i, k]
            if periodic[k]:
                wraps[i, k] = math.floor(fraction)
                fraction -= wraps[i, k]
            index = index * bins[k] + min(int((fraction - lowest[k]) / span[k] * bins[k]), bins[k] - 1)
        home[i] = index
        first[index + 1] += 1
    cursor = np.empty(len(first), dtype=np.int64)
    total = 0
    for index in range(len(first)):
        total += first[index]
        first[index] = cursor[index] = total
    order = np.empty(atoms, dtype=np.int32)
    wrapped = np.empty((3, atoms))
    for i in range(atoms):
        place = cursor[home[i]]
        cursor[home[i]] += 1
        order[place] = i
        for k in range(3):
            moved = rotated[i, k]
            for n in range(k + 1):
                moved -= wraps[i, n] * triangle[n, k]
            wrapped[k, place] = moved
    return bins, reach, first, order, home, wraps, wrapped


@compiled
def half_edges_by_bins(positions, cell, periodic, cutoff, triangle, rotated, out, begin, end):
    """Half edges of a large structure from atoms in nearby bins; arguments and result as `half_edges_by_pairs`.

    Bins along the last axis follow each other in memory, so a row of them is one run of atoms.
    """
    m, neighbours, shifts, lengths = out
    radius = search_radius(rotated, triangle, periodic, cutoff)
    squared = radius * radius
    bins, reach, first, order, home, wraps, wrapped = place_in_bins(triangle, periodic, rotated, radius)
    bins1, bins2 = bins[1], bins[2]
    for place in range(len(positions)):
        i = order[place]
        begin[i] = m
        b0, b1, b2 = home[i] // (bins1 * bins2), home[i] // bins2 % bins1, home[i] % bins2
        for t0 in range(b0 - reach[0], b0 + reach[0] + 1):
            s0 = t0 // bins[0]
            if s0 != 0 and not periodic[0]:
                continue
            for t1 in range(b1 - reach[1], b1 + reach[1] + 1):
                s1 = t1 // bins1
                if s1 != 0 and not periodic[1]:
                    continue
                row = ((t0 - s0 * bins[0]) * bins1 + (t1 - s1 * bins1)) * bins2
                for s2 in range((b2 - reach[2]) // bins2, (b2 + reach[2]) // bins2 + 1):
                    if s2 != 0 and not periodic[2]:
                        continue
                    from_bin = max(b2 - reach[2] - s2 * bins2, 0)
                    to_bin = min(b2 + reach[2] - s2 * bins2, bins2 - 1)
                    start, stop = first[row + from_bin], first[row + to_bin + 1]
                    if m + stop - start >= len(lengths):
                        return -1
                    c0 = wrapped[0, place] - s0 * triangle[0, 0]
                    c1 = wrapped[1, place] - s0 * triangle[0, 1] - s1 * triangle[1, 1]
                    c2 = wrapped[2, place] - s0 * triangle[0, 2] - s1 * triangle[1, 2] - s2 * triangle[2, 2]
                    above = s0 > 0 or (s0 == 0 and (s1 > 0 or (s1 == 0 and s2 > 0)))
                    least = i if above else i + 1
                    for k in range(start, stop):
                        v0, v1, v2 = wrapped[0, k] - c0, wrapped[1, k] - c1, wrapped[2, k] - c2
                        j = order[k]
                        if (v0 * v0 + v1 * v1 + v2 * v2 < squared) & (j >= least):
                            n0, n1, n2 = (
                                s0 + wraps[i, 0] - wraps[j, 0],
                                s1 + wraps[i, 1] - wraps[j, 1],
                                s2 + wraps[i, 2] - wraps[j, 2],
                            )
                            f0, f1, f2 = float(n0), float(n1), float(n2)
                            u = (positions[j, 0] - positions[i, 0]) + (
                                (f0 * cell[0, 0] + f1 * cell[1, 0]) + f2 * cell[2, 0]
                            )
                            v = (positions[j, 1] - positions[i, 1]) + (
                                (f0 * cell[0, 1] + f1 * cell[1, 1]) + f2 * cell[2, 1]
                            )
                            w = (positions[j, 2] - positions[i, 2]) + (
                                (f0 * cell[0, 2] + f1 * cell[1, 2]) + f2 * cell[2, 2]
                            )
                            length = math.sqrt((u * u + v * v) + w * w)
                            if length < cutoff:
                                neighbours[m] = j
                                shifts[m, 0], shifts[m, 1], shifts[m, 2] = n0, n1, n2
                                lengths[m] = length
                                m += 1
        end[i] = m
    return m


@compiled
def half_edges(positions, cells, periodic, first_atom, cutoff, most_by_pairs, guess):
    """Half edges of many structures, one after the other.

    Args:
        positions: of all atoms, structure by structure.
        cells: one a structure.
        periodic: one row a structure.
        first_atom: first atom of each structure, and one past the last.
        cutoff: edges are strictly shorter.
        most_by_pairs: up to so many atoms every pair is looked at; beyond, only atoms in nearby bins.
        guess: about how many there will be.

    Returns:
        For each atom the place of its first half edge and the one after its last; neighbours, counted in their
        structure; shifts; lengths.
    """
    begin = np.empty(len(positions), dtype=np.int64)
    end = np.empty(len(positions), dtype=np.int64)
    neighbours = np.empty(guess, dtype=np.int32)
    shifts = np.empty((guess, 3), dtype=np.int32)
    lengths = np.empty(guess, dtype=np.float64)
    found = np.int64(0)
    for structure in range(len(cells)):
        here = slice(first_atom[structure], first_atom[structure + 1])
        own = positions[here]
        axes, triangle = frame_of_cell(cells[structure], periodic[structure])
        rotated = np.empty((len(own), 3))
        for i in range(len(own)):
            for k in range(3):
                rotated[i, k] = own[i, 0] * axes[k, 0] + own[i, 1] * axes[k, 1] + own[i, 2] * axes[k, 2]
        while True:
            out = (found, neighbours, shifts, lengths)
            if len(own) <= most_by_pairs:
                reached = half_edges_by_pairs(
                    own, cells[structure], periodic[structure], cutoff, triangle, rotated, out, begin[here], end[here]
                )
            else:
                reached = half_edges_by_bins(
                    own, cells[structure], periodic[structure], cutoff, triangle, rotated, out, begin[here], end[here]
                )
            if reached >= 0:
                found = reached
                break
            room = 2 * len(lengths) + 1024
            more_neighbours = np.empty(room, dtype=np.int32)
            more_shifts = np.empty((room, 3), dtype=np.int32)
            more_lengths = np.empty(room, dtype=np.float64)
            for e in range(found):
                more_neighbours[e], more_lengths[e] = neighbours[e], lengths[e]
                for k in range(3):
                    more_shifts[e, k] = shifts[e, k]
            neighbours, shifts, lengths = more_neighbours, more_shifts, more_lengths
    return begin, end, neighbours, shifts, lengths
