"""The planner's loops over ranks, elements and experts of one layer, in integers.

Numba compiles them where it is installed (extra `fast`); without it they run as they are, a few hundred times slower,
and give the same integers. Importing this imports numba.
"""

# What numba compiles it also types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import numpy as np

try:
    import numba
except ImportError:
    numba = None


def compiled(function):
    """The function as machine code, made at its first call and kept on disk where there is a place to keep it."""
    if numba is None:
        return function
    try:
        return numba.njit(function, cache=True, nogil=True)
    except RuntimeError:
        # Neither beside the source nor in the user's cache directory can a file be written.
        return numba.njit(function, nogil=True)


@compiled
def layer_cost(rows, selection, computes, experts, slices, costs):
    """Picoseconds of the slowest rank."""
    return layer_times(rows, selection, computes, experts, slices, costs).max()


@compiled
def layer_times(rows, selection, computes, experts, slices, costs):
    """Picoseconds of every rank: computing, moving rows, and sending or receiving slices, whichever takes longer.

    Args:
        rows: [present, ranks].
        selection: [present, top_k].
        computes: rank that computes a rank's rows of an element by each of its experts, [present, top_k, ranks].
        experts: how many there are.
        slices: hidden units of each expert that each rank stores.
        costs: of a pair, a moved row, a hidden unit, an exchange.
    """
    pair, row, unit, exchange = costs
    pairs, sent, received, restored = load(rows, selection, computes, experts)
    moved = sent + received
    hidden = slices.sum()
    total = restored.sum()
    any_moved, any_restored = False, False
    for rank in range(rows.shape[1]):
        any_moved |= moved[rank] > 0
        any_restored |= (total - restored[rank]) * slices[rank] > 0
    common = exchange * (int(any_moved) + int(any_restored))
    times = np.empty(rows.shape[1], np.int64)
    for rank in range(rows.shape[1]):
        there, here = (total - restored[rank]) * slices[rank], restored[rank] * (hidden - slices[rank])
        times[rank] = common + pair * pairs[rank] + row * moved[rank] + unit * max(there, here)
    return times


@compiled
def load(rows, selection, computes, experts):
    """Of every rank: rows times experts it computes, rows it sends, rows it computes for others, experts it restores.

    A row that several experts of another rank need is sent there once.
    """
    present, ranks = rows.shape
    pairs, sent, received = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
    used = np.zeros((experts, ranks), np.bool_)
    sent_to = np.full((ranks, ranks), -1, np.int64)
    for element in range(present):
        for k in range(selection.shape[1]):
            expert = selection[element, k]
            for source in range(ranks):
                count = rows[element, source]
                if count == 0:
                    continue
                rank = computes[element, k, source]
                pairs[rank] += count
                used[expert, rank] = True
                if rank != source and sent_to[source, rank] != element:
                    sent_to[source, rank] = element
                    sent[source] += count
                    received[rank] += count
    restored = np.zeros(ranks, np.int64)
    for expert in range(experts):
        for rank in range(ranks):
            restored[rank] += used[expert, rank]
    return pairs, sent, received, restored


@compiled
def plan_layer(rows, selection, line, experts, slices, costs, shares):
    """The cheapest placement found, [present, top_k, ranks].

    Args:
        rows, selection, experts, slices, costs: as of `layer_times`.
        line: elements in the order in which they share experts.
        shares: percentages, see `stays`.
    """
    present, ranks = rows.shape
    best = np.empty((present, selection.shape[1], ranks), np.int64)
    best[:] = np.arange(ranks)
    cost = layer_cost(rows, selection, best, experts, slices, costs)
    loads = expert_loads(rows, selection, experts)
    pairs = line_of_pairs(rows, selection, line, experts)
    other = np.empty_like(best)
    before = np.ones((present, ranks), np.bool_)
    largest_first = np.empty((ranks, present), np.int64)
    for rank in range(ranks):
        largest_first[rank] = np.argsort(-rows[:, rank], kind="mergesort")
    for candidate in range(len(shares) + 2):
        if candidate < len(shares):
            stay = stays(rows, largest_first, selection.shape[1], slices, costs, shares[candidate])
            if (stay == before).all():
                continue
            before = stay
            line_up(rows, selection, pairs, stay, experts, slices, costs, other)
        elif least_of_homes(rows, selection.shape[1], loads, slices, costs) >= cost:
            break
        elif candidate == len(shares):
            at_homes(selection, longest_first(loads, ranks), other)
        else:
            at_homes(selection, np.arange(experts) * ranks // max(experts, 1), other)
        other_cost = layer_cost(rows, selection, other, experts, slices, costs)
        if other_cost < cost:
            cost = other_cost
            best[:] = other
    return best


@compiled
def expert_loads(rows, selection, experts):
    """Rows that every expert computes."""
    loads = np.zeros(experts, np.int64)
    counts = rows.sum(axis=1)
    for element in range(selection.shape[0]):
        for k in range(selection.shape[1]):
            loads[selection[element, k]] += counts[element]
    return loads


@compiled
def least_of_homes(rows, top_k, loads, slices, costs):
    """No placement that computes every expert on one rank costs less: of every element, all ranks but one must move
    their rows, each used expert is restored somewhere, and the slowest rank is no faster than the mean."""
    pair, row, unit, _ = costs
    ranks, total, moved = rows.shape[1], rows.sum(), 0
    for element in range(rows.shape[0]):
        moved += rows[element].sum() - rows[element].max()
    restored = unit * (loads > 0).sum() * (slices.sum() - slices.max())
    return (pair * top_k * total + 2 * row * moved + restored) // ranks


@compiled
def stays(rows, largest_first, top_k, slices, costs, share):
    """Which rows are computed where they are, [present, ranks]: those whose moving would cost more than `share` percent
    of restoring their experts, at most a rank's share of all work, the smallest groups going first."""
    pair, row, unit, _ = costs
    present, ranks = rows.shape
    # Of an element's experts its neighbours in the periodic table have restored about four in ten already.
    restore = unit * top_k * (slices.sum() - slices.min()) * 6 // 10
    stay = np.zeros((present, ranks), np.bool_)
    goal = pair * top_k * rows.sum() // ranks
    for element in range(present):
        for rank in range(ranks):
            stay[element, rank] = rows[element, rank] > 0 and 200 * row * rows[element, rank] > share * restore
            if stay[element, rank]:
                goal += restore // ranks
    for rank in range(ranks):
        kept = 0
        for position in range(present):
            element = largest_first[rank, position]
            if stay[element, rank]:
                kept += pair * top_k * rows[element, rank] + restore
                if kept > goal + goal // 50:
                    stay[element, rank] = False
    return stay


@compiled
def line_of_pairs(rows, selection, line, experts):
    """Every expert of every element, [present · top_k, 2] as element and which of its experts, as they stand in line.

    Each expert stands with the element that gives it most rows, elements in the order of `line`, so that experts of one
    element are neighbours.
    """
    present, top_k = selection.shape
    most, place = np.full(experts, -1, np.int64), np.zeros(experts, np.int64)
    counts = rows.sum(axis=1)
    for at in range(present):
        for k in range(top_k):
            expert = selection[line[at], k]
            if counts[line[at]] > most[expert]:
                most[expert], place[expert] = counts[line[at]], at
    # Where each expert's elements begin, experts by place: a counting sort.
    users = np.zeros(experts, np.int64)
    for element in range(present):
        for k in range(top_k):
            users[selection[element, k]] += 1
    begin, total = np.zeros(experts, np.int64), 0
    for expert in np.argsort(place, kind="mergesort"):
        begin[expert] = total
        total += users[expert]
    pairs = np.empty((present * top_k, 2), np.int64)
    for at in range(present):
        for k in range(top_k):
            expert = selection[line[at], k]
            pairs[begin[expert], 0], pairs[begin[expert], 1] = line[at], k
            begin[expert] += 1
    return pairs


@compiled
def line_up(rows, selection, pairs, stay, experts, slices, costs, computes):
    """Cut the line of all rows that do not stay, expert by expert and rank by rank, into what each rank can still do.

    An expert is restored once, or wherever its part of the line is cut, and a row goes to one rank or two.
    """
    pair, row, unit, _ = costs
    ranks, top_k = rows.shape[1], selection.shape[1]
    restore = unit * (slices.sum() - slices.min())
    # A row goes to one rank or two, which costs both ends; its experts share that.
    each = pair + 3 * row // top_k
    room, total = room_and_line(rows, selection, stay, experts, pair, restore, each)
    # Room and line are made equally long; in floating point, since products of costs outgrow integers.
    scale = total / max(room.sum(), 1)
    rank, at, end, last = 0, 0, int(room[0] * scale), -1
    for position in range(len(pairs)):
        element, k = pairs[position, 0], pairs[position, 1]
        for source in range(ranks):
            count = rows[element, source]
            if count == 0 or stay[element, source]:
                computes[element, k, source] = source
                continue
            if selection[element, k] != last:
                last = selection[element, k]
                at += restore
            step = each * count
            while rank < ranks - 1 and at + step // 2 >= end:
                rank += 1
                end += int(room[rank] * scale)
            at += step
            computes[element, k, source] = rank


@compiled
def room_and_line(rows, selection, stay, experts, pair, restore, each):
    """What each rank can still do beside the rows that stay there, up to its share of all; and the line's length."""
    present, ranks = rows.shape
    top_k = selection.shape[1]
    done = np.zeros(ranks, np.int64)
    kept = np.zeros((experts, ranks), np.bool_)
    lined = np.zeros(experts, np.bool_)
    total = 0
    for element in range(present):
        for rank in range(ranks):
            count = rows[element, rank]
            if count == 0:
                continue
            if stay[element, rank]:
                done[rank] += pair * top_k * count
            else:
                total += each * top_k * count
            for k in range(top_k):
                expert = selection[element, k]
                if not stay[element, rank]:
                    lined[expert] = True
                elif not kept[expert, rank]:
                    kept[expert, rank] = True
                    done[rank] += restore
    total += restore * lined.sum()
    goal = (total + done.sum()) // ranks
    return np.maximum(goal - done, 0), total


@compiled
def longest_first(loads, ranks):
    """A home for every expert by the longest-processing-time rule: the expert with most rows goes first, to the rank
    that has fewest so far (R. L. Graham, SIAM J. Appl. Math. 17, 416, 1969)."""
    homes, filled = np.zeros(len(loads), np.int64), np.zeros(ranks, np.int64)
    for expert in np.argsort(-loads, kind="mergesort"):
        homes[expert] = np.argmin(filled)
        filled[homes[expert]] += loads[expert]
    return homes


@compiled
def at_homes(selection, homes, computes):
    """Every expert is computed on one rank, where all of its rows go."""
    for element in range(selection.shape[0]):
        for k in range(selection.shape[1]):
            computes[element, k] = homes[selection[element, k]]
