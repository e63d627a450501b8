"""The kernels of attention among near edges: one program for each atom and head.

A program reads the rows of its atom's near edges, which stand side by side, and walks over blocks of edges p, each
against all edges q. Products, angles, polynomials, envelopes and weights of the pairs live in registers and are made
again in every derivative; no array over pairs is ever in memory. Sums over heads and atoms are left to the caller, who
adds them up in the same order every time.

For one head: u unit vectors, φ envelopes, Q, K, V queries, keys and values, P_l Legendre polynomials of the cosines
c_pq = u_p · u_q, b and γ what they add up to in logits and in the filter, a_pq the share of `softmax_with_sink`, so
that A = a φ_q is the attention, and G what comes from outside to O_p = φ_p Σ_q A_pq γ_pq V_q. Names that end in _p
belong to the block of edges p, those in _q to all edges, those without to pairs, and those that begin with d_ are
derivatives along moves of everything.
"""

from __future__ import annotations

import triton
import triton.language as tl

from matris_model.kernels.softmax import softmax_with_sink, softmax_with_sink_tangent

# Numbers that change from batch to batch: a kernel is not compiled anew where one is divisible by 16.
_CHANGING = ("first_row", "near")


@triton.jit
def _edges_of(atoms, starts, first_row):
    """First near edge of the program's atom and how many it has; rows times features may be beyond 32 bits."""
    atom = tl.load(atoms + first_row + tl.program_id(0))
    start = tl.load(starts + atom)
    return start.to(tl.int64), tl.load(starts + atom + 1) - start


@triton.jit
def _part(rows, edge, there, which: tl.constexpr, heads: tl.constexpr, size: tl.constexpr, tile_size: tl.constexpr):
    """Queries (0), keys (1) or values (2) of some edges for the program's head: where they are and which are there."""
    feature = tl.arange(0, tile_size)
    place = edge[:, None] * (3 * heads * size) + which * heads * size + tl.program_id(1) * size + feature[None, :]
    return rows + place, there[:, None] & (feature[None, :] < size)


@triton.jit
def _load_part(
    rows, edge, there, which: tl.constexpr, heads: tl.constexpr, size: tl.constexpr, tile_size: tl.constexpr
):
    place, mask = _part(rows, edge, there, which, heads, size, tile_size)
    return tl.load(place, mask=mask, other=0.0)


@triton.jit
def _outer_part(outer, edge, there, heads: tl.constexpr, size: tl.constexpr, tile_size: tl.constexpr):
    """Where some edges' features of a result are, for the program's head, and which are there."""
    feature = tl.arange(0, tile_size)
    place = edge[:, None] * (heads * size) + tl.program_id(1) * size + feature[None, :]
    return outer + place, there[:, None] & (feature[None, :] < size)


@triton.jit
def _load_directions(directions, edge, there):
    """Unit vectors and envelopes of some edges, zeros for those that are not there."""
    x = tl.load(directions + edge * 4, mask=there, other=0.0)
    y = tl.load(directions + edge * 4 + 1, mask=there, other=0.0)
    z = tl.load(directions + edge * 4 + 2, mask=there, other=0.0)
    return x, y, z, tl.load(directions + edge * 4 + 3, mask=there, other=0.0)


@triton.jit
def _store_directions(results, side: tl.constexpr, heads: tl.constexpr, near, edge, there, x, y, z, envelope):
    """Gradients in unit vectors and envelopes as p (side 0) or as q (side 1), for the program's head."""
    place = results + ((side * heads + tl.program_id(1)).to(tl.int64) * near + edge) * 4
    tl.store(place, x, mask=there)
    tl.store(place + 1, y, mask=there)
    tl.store(place + 2, z, mask=there)
    tl.store(place + 3, envelope, mask=there)


@triton.jit
def _next_degree(cosine, degree: tl.constexpr, before, value, slope_before, slope, bend_before, bend):
    """P_{n+1} and its first two derivatives from those of P_n and P_{n−1}."""
    after = ((2 * degree + 1) * cosine * value - degree * before) / (degree + 1)
    return after, slope_before + (2 * degree + 1) * value, bend_before + (2 * degree + 1) * slope


@triton.jit
def _angular(cosine, coefficients, heads: tl.constexpr, functions: tl.constexpr):
    """Σ b_l P_l and Σ c_l P_l for the program's head, each with its first and second derivative in the cosine."""
    nothing = cosine * 0.0
    before, value, slope_before, slope, bend_before, bend = nothing, nothing + 1.0, nothing, nothing, nothing, nothing
    bias, bias_slope, bias_bend = nothing, nothing, nothing
    angular, angular_slope, angular_bend = nothing, nothing, nothing
    for degree in tl.static_range(functions):
        b = tl.load(coefficients + tl.program_id(1) * functions + degree)
        c = tl.load(coefficients + (heads + tl.program_id(1)) * functions + degree)
        bias, bias_slope, bias_bend = bias + b * value, bias_slope + b * slope, bias_bend + b * bend
        angular, angular_slope, angular_bend = angular + c * value, angular_slope + c * slope, angular_bend + c * bend
        after, slope_after, bend_after = _next_degree(
            cosine, degree, before, value, slope_before, slope, bend_before, bend
        )
        before, value, slope_before, slope, bend_before, bend = value, after, slope, slope_after, bend, bend_after
    return bias, bias_slope, bias_bend, angular, angular_slope, angular_bend


@triton.jit
def _angular_gradient(
    cosine, of_values, of_slopes, with_slopes: tl.constexpr, functions: tl.constexpr, block: tl.constexpr
):
    """Σ_pq x P_l(c_pq), and if asked for + y P_l'(c_pq), for every degree l."""
    nothing = cosine * 0.0
    before, value, slope_before, slope, bend_before, bend = nothing, nothing + 1.0, nothing, nothing, nothing, nothing
    place = tl.arange(0, block)
    total = tl.zeros((block,), dtype=cosine.dtype)
    for degree in tl.static_range(functions):
        of_pairs = of_values * value
        if with_slopes:
            of_pairs += of_slopes * slope
        total += tl.where(place == degree, tl.sum(tl.sum(of_pairs, 1), 0), 0.0)
        after, slope_after, bend_after = _next_degree(
            cosine, degree, before, value, slope_before, slope, bend_before, bend
        )
        before, value, slope_before, slope, bend_before, bend = value, after, slope, slope_after, bend, bend_after
    return total


@triton.jit
def _store_others(
    results, edge, there, to_key, to_value, heads: tl.constexpr, size: tl.constexpr, tile_size: tl.constexpr
):
    """Gradients in keys and values."""
    place, mask = _part(results, edge, there, 1, heads, size, tile_size)
    tl.store(place, to_key, mask=mask)
    place, mask = _part(results, edge, there, 2, heads, size, tile_size)
    tl.store(place, to_value, mask=mask)


@triton.jit
def _store_coefficients(
    results, first_row, to_bias, to_angular, heads: tl.constexpr, functions: tl.constexpr, block: tl.constexpr
):
    """Gradients in the coefficients of logits and filter, of the program's atom and head."""
    degree = tl.arange(0, block)
    place = ((first_row + tl.program_id(0)).to(tl.int64) * 2 * heads + tl.program_id(1)) * functions + degree
    tl.store(results + place, to_bias, mask=degree < functions)
    tl.store(results + place + heads * functions, to_angular, mask=degree < functions)


@triton.jit(do_not_specialize=_CHANGING)
def near_value(
    rows, directions, coefficients, out, atoms, starts, first_row, near,
    heads: tl.constexpr, size: tl.constexpr, functions: tl.constexpr, scale: tl.constexpr,
    tile: tl.constexpr, tile_other: tl.constexpr, tile_size: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """O."""
    start, count = _edges_of(atoms, starts, first_row)
    q = tl.arange(0, tile_other)
    edge_q, there_q = start + q, q < count
    key_q = _load_part(rows, edge_q, there_q, 1, heads, size, tile_size)
    value_q = _load_part(rows, edge_q, there_q, 2, heads, size, tile_size)
    x_q, y_q, z_q, envelope_q = _load_directions(directions, edge_q, there_q)
    for first in range(0, count, tile):
        p = first + tl.arange(0, tile)
        edge_p, there_p = start + p, p < count
        query_p = _load_part(rows, edge_p, there_p, 0, heads, size, tile_size)
        x_p, y_p, z_p, envelope_p = _load_directions(directions, edge_p, there_p)
        there = there_p[:, None] & there_q[None, :] & (p[:, None] != q[None, :])
        cosine = x_p[:, None] * x_q[None, :] + y_p[:, None] * y_q[None, :] + z_p[:, None] * z_q[None, :]
        bias, _, _, angular, _, _ = _angular(cosine, coefficients, heads, functions)
        scores = scale * tl.dot(query_p, tl.trans(key_q), input_precision="ieee") + bias
        share = softmax_with_sink(scores, envelope_q, there)
        taken = tl.dot(share * envelope_q[None, :] * angular, value_q, input_precision="ieee")
        place, mask = _outer_part(out, edge_p, there_p, heads, size, tile_size)
        tl.store(place, envelope_p[:, None] * taken, mask=mask)


@triton.jit(do_not_specialize=_CHANGING)
def near_gradient(
    rows, directions, coefficients, outer, to_rows, to_directions, to_coefficients, atoms, starts, first_row, near,
    heads: tl.constexpr, size: tl.constexpr, functions: tl.constexpr, scale: tl.constexpr,
    tile: tl.constexpr, tile_other: tl.constexpr, tile_size: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Gradients of Σ G · O in rows, directions (as p and as q, head by head) and coefficients (atom by atom)."""
    start, count = _edges_of(atoms, starts, first_row)
    q = tl.arange(0, tile_other)
    edge_q, there_q = start + q, q < count
    key_q = _load_part(rows, edge_q, there_q, 1, heads, size, tile_size)
    value_q = _load_part(rows, edge_q, there_q, 2, heads, size, tile_size)
    x_q, y_q, z_q, envelope_q = _load_directions(directions, edge_q, there_q)
    to_key_q, to_value_q, to_envelope_q = key_q * 0.0, value_q * 0.0, envelope_q * 0.0
    to_x_q, to_y_q, to_z_q = x_q * 0.0, y_q * 0.0, z_q * 0.0
    to_bias = tl.zeros((block,), dtype=key_q.dtype)
    to_angular = tl.zeros((block,), dtype=key_q.dtype)
    for first in range(0, count, tile):
        p = first + tl.arange(0, tile)
        edge_p, there_p = start + p, p < count
        query_p = _load_part(rows, edge_p, there_p, 0, heads, size, tile_size)
        x_p, y_p, z_p, envelope_p = _load_directions(directions, edge_p, there_p)
        place, mask = _outer_part(outer, edge_p, there_p, heads, size, tile_size)
        outer_p = tl.load(place, mask=mask, other=0.0)
        there = there_p[:, None] & there_q[None, :] & (p[:, None] != q[None, :])
        cosine = x_p[:, None] * x_q[None, :] + y_p[:, None] * y_q[None, :] + z_p[:, None] * z_q[None, :]
        bias, bias_slope, _, angular, angular_slope, _ = _angular(cosine, coefficients, heads, functions)
        scores = scale * tl.dot(query_p, tl.trans(key_q), input_precision="ieee") + bias
        share = softmax_with_sink(scores, envelope_q, there)
        weight = share * envelope_q[None, :]
        asked = tl.dot(outer_p, tl.trans(value_q), input_precision="ieee")
        # Through the attention: ∂/∂A = φ_p γ G·V, less its mean under A; through the filter: ∂/∂γ = φ_p A G·V.
        to_weight = envelope_p[:, None] * asked * angular
        to_share = share * (to_weight - tl.sum(to_weight * weight, 1)[:, None])
        to_score = to_share * envelope_q[None, :]
        to_filter = envelope_p[:, None] * asked * weight
        to_cosine = to_score * bias_slope + to_filter * angular_slope
        to_value_q += tl.dot(tl.trans(weight * angular), envelope_p[:, None] * outer_p, input_precision="ieee")
        to_key_q += scale * tl.dot(tl.trans(to_score), query_p, input_precision="ieee")
        to_envelope_q += tl.sum(to_share, 0)
        to_x_q += tl.sum(to_cosine * x_p[:, None], 0)
        to_y_q += tl.sum(to_cosine * y_p[:, None], 0)
        to_z_q += tl.sum(to_cosine * z_p[:, None], 0)
        to_bias += _angular_gradient(cosine, to_score, to_score, False, functions, block)
        to_angular += _angular_gradient(cosine, to_filter, to_filter, False, functions, block)
        to_query_p = scale * tl.dot(to_score, key_q, input_precision="ieee")
        place, mask = _part(to_rows, edge_p, there_p, 0, heads, size, tile_size)
        tl.store(place, to_query_p, mask=mask)
        to_x_p = tl.sum(to_cosine * x_q[None, :], 1)
        to_y_p = tl.sum(to_cosine * y_q[None, :], 1)
        to_z_p = tl.sum(to_cosine * z_q[None, :], 1)
        to_envelope_p = tl.sum(asked * angular * weight, 1)
        _store_directions(to_directions, 0, heads, near, edge_p, there_p, to_x_p, to_y_p, to_z_p, to_envelope_p)
    _store_others(to_rows, edge_q, there_q, to_key_q, to_value_q, heads, size, tile_size)
    _store_directions(to_directions, 1, heads, near, edge_q, there_q, to_x_q, to_y_q, to_z_q, to_envelope_q)
    _store_coefficients(to_coefficients, first_row, to_bias, to_angular, heads, functions, block)


@triton.jit(do_not_specialize=_CHANGING)
def near_tangent(
    rows, directions, coefficients, d_rows, d_directions, d_coefficients, outer,
    d_out, d_to_rows, d_to_directions, d_to_coefficients, atoms, starts, first_row, near,
    heads: tl.constexpr, size: tl.constexpr, functions: tl.constexpr, scale: tl.constexpr,
    tile: tl.constexpr, tile_other: tl.constexpr, tile_size: tl.constexpr, block: tl.constexpr,
    with_gradient: tl.constexpr,
):  # fmt: skip
    """Derivatives of O and, if asked for, of all that `near_gradient` gives, along moves of its inputs but G."""
    start, count = _edges_of(atoms, starts, first_row)
    q = tl.arange(0, tile_other)
    edge_q, there_q = start + q, q < count
    key_q = _load_part(rows, edge_q, there_q, 1, heads, size, tile_size)
    value_q = _load_part(rows, edge_q, there_q, 2, heads, size, tile_size)
    d_key_q = _load_part(d_rows, edge_q, there_q, 1, heads, size, tile_size)
    d_value_q = _load_part(d_rows, edge_q, there_q, 2, heads, size, tile_size)
    x_q, y_q, z_q, envelope_q = _load_directions(directions, edge_q, there_q)
    d_x_q, d_y_q, d_z_q, d_envelope_q = _load_directions(d_directions, edge_q, there_q)
    to_key_q, to_value_q, to_envelope_q = key_q * 0.0, value_q * 0.0, envelope_q * 0.0
    to_x_q, to_y_q, to_z_q = x_q * 0.0, y_q * 0.0, z_q * 0.0
    to_bias = tl.zeros((block,), dtype=key_q.dtype)
    to_angular = tl.zeros((block,), dtype=key_q.dtype)
    for first in range(0, count, tile):
        p = first + tl.arange(0, tile)
        edge_p, there_p = start + p, p < count
        query_p = _load_part(rows, edge_p, there_p, 0, heads, size, tile_size)
        d_query_p = _load_part(d_rows, edge_p, there_p, 0, heads, size, tile_size)
        x_p, y_p, z_p, envelope_p = _load_directions(directions, edge_p, there_p)
        d_x_p, d_y_p, d_z_p, d_envelope_p = _load_directions(d_directions, edge_p, there_p)
        there = there_p[:, None] & there_q[None, :] & (p[:, None] != q[None, :])
        cosine = x_p[:, None] * x_q[None, :] + y_p[:, None] * y_q[None, :] + z_p[:, None] * z_q[None, :]
        d_cosine = d_x_p[:, None] * x_q[None, :] + d_y_p[:, None] * y_q[None, :] + d_z_p[:, None] * z_q[None, :]
        d_cosine += x_p[:, None] * d_x_q[None, :] + y_p[:, None] * d_y_q[None, :] + z_p[:, None] * d_z_q[None, :]
        bias, bias_slope, bias_bend, angular, angular_slope, angular_bend = _angular(
            cosine, coefficients, heads, functions
        )
        d_bias, d_bias_slope, _, d_angular, d_angular_slope, _ = _angular(cosine, d_coefficients, heads, functions)
        d_bias += bias_slope * d_cosine
        d_angular += angular_slope * d_cosine
        scores = scale * tl.dot(query_p, tl.trans(key_q), input_precision="ieee") + bias
        d_scores = tl.dot(d_query_p, tl.trans(key_q), input_precision="ieee")
        d_scores += tl.dot(query_p, tl.trans(d_key_q), input_precision="ieee")
        d_scores = scale * d_scores + d_bias
        share = softmax_with_sink(scores, envelope_q, there)
        d_share = softmax_with_sink_tangent(share, envelope_q, d_scores, d_envelope_q)
        weight = share * envelope_q[None, :]
        d_weight = d_share * envelope_q[None, :] + share * d_envelope_q[None, :]
        passed, d_passed = weight * angular, d_weight * angular + weight * d_angular
        d_taken = tl.dot(
            d_envelope_p[:, None] * passed + envelope_p[:, None] * d_passed, value_q, input_precision="ieee"
        )
        d_taken += tl.dot(envelope_p[:, None] * passed, d_value_q, input_precision="ieee")
        place, mask = _outer_part(d_out, edge_p, there_p, heads, size, tile_size)
        tl.store(place, d_taken, mask=mask)
        if with_gradient:
            place, mask = _outer_part(outer, edge_p, there_p, heads, size, tile_size)
            outer_p = tl.load(place, mask=mask, other=0.0)
            asked = tl.dot(outer_p, tl.trans(value_q), input_precision="ieee")
            d_asked = tl.dot(outer_p, tl.trans(d_value_q), input_precision="ieee")
            to_passed = envelope_p[:, None] * asked
            d_to_passed = d_envelope_p[:, None] * asked + envelope_p[:, None] * d_asked
            to_weight, d_to_weight = to_passed * angular, d_to_passed * angular + to_passed * d_angular
            centred = to_weight - tl.sum(to_weight * weight, 1)[:, None]
            d_centred = d_to_weight - tl.sum(d_to_weight * weight + to_weight * d_weight, 1)[:, None]
            to_share, d_to_share = share * centred, d_share * centred + share * d_centred
            to_score = to_share * envelope_q[None, :]
            d_to_score = d_to_share * envelope_q[None, :] + to_share * d_envelope_q[None, :]
            to_filter, d_to_filter = to_passed * weight, d_to_passed * weight + to_passed * d_weight
            to_cosine = to_score * bias_slope + to_filter * angular_slope
            d_to_cosine = d_to_score * bias_slope + d_to_filter * angular_slope
            d_to_cosine += to_score * (d_bias_slope + bias_bend * d_cosine)
            d_to_cosine += to_filter * (d_angular_slope + angular_bend * d_cosine)
            to_value_q += tl.dot(tl.trans(d_passed), envelope_p[:, None] * outer_p, input_precision="ieee")
            to_value_q += tl.dot(tl.trans(passed), d_envelope_p[:, None] * outer_p, input_precision="ieee")
            to_key_q += scale * tl.dot(tl.trans(d_to_score), query_p, input_precision="ieee")
            to_key_q += scale * tl.dot(tl.trans(to_score), d_query_p, input_precision="ieee")
            to_envelope_q += tl.sum(d_to_share, 0)
            to_x_q += tl.sum(d_to_cosine * x_p[:, None] + to_cosine * d_x_p[:, None], 0)
            to_y_q += tl.sum(d_to_cosine * y_p[:, None] + to_cosine * d_y_p[:, None], 0)
            to_z_q += tl.sum(d_to_cosine * z_p[:, None] + to_cosine * d_z_p[:, None], 0)
            to_bias += _angular_gradient(cosine, d_to_score, to_score * d_cosine, True, functions, block)
            to_angular += _angular_gradient(cosine, d_to_filter, to_filter * d_cosine, True, functions, block)
            to_query_p = tl.dot(d_to_score, key_q, input_precision="ieee")
            to_query_p += tl.dot(to_score, d_key_q, input_precision="ieee")
            place, mask = _part(d_to_rows, edge_p, there_p, 0, heads, size, tile_size)
            tl.store(place, scale * to_query_p, mask=mask)
            to_x_p = tl.sum(d_to_cosine * x_q[None, :] + to_cosine * d_x_q[None, :], 1)
            to_y_p = tl.sum(d_to_cosine * y_q[None, :] + to_cosine * d_y_q[None, :], 1)
            to_z_p = tl.sum(d_to_cosine * z_q[None, :] + to_cosine * d_z_q[None, :], 1)
            to_envelope_p = tl.sum(d_asked * passed + asked * d_passed, 1)
            _store_directions(d_to_directions, 0, heads, near, edge_p, there_p, to_x_p, to_y_p, to_z_p, to_envelope_p)
    if with_gradient:
        _store_others(d_to_rows, edge_q, there_q, to_key_q, to_value_q, heads, size, tile_size)
        _store_directions(d_to_directions, 1, heads, near, edge_q, there_q, to_x_q, to_y_q, to_z_q, to_envelope_q)
        _store_coefficients(d_to_coefficients, first_row, to_bias, to_angular, heads, functions, block)
