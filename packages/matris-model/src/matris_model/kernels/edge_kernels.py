"""The kernels of the attention of an atom over its messages: one program for each atom, all heads at once.

A program reads the messages of its atom, which stand side by side, twice: once for the products with every head's
query, once for the sums. The edges of an atom fit in one tile, features are walked over. Every number of an atom or an
edge is written by one program, so nothing is left to add up.

q queries, m messages, b logits from the radial basis, φ envelopes, a the share of `softmax_with_sink` of the logits
L tanh(q · m / L) + b, so that A = a φ is the attention, G what comes from outside to O_h = Σ_k A_hk m_k. Tiles are
heads by edges, or either by features; names that begin with d_ are derivatives along moves of everything.
"""

from __future__ import annotations

import triton
import triton.language as tl

from matris_model.kernels.softmax import softmax_with_sink, softmax_with_sink_tangent

# Numbers that change from batch to batch: a kernel is not compiled anew where one is divisible by 16.
_CHANGING = ("first_row",)


@triton.jit
def _around(atoms, starts, first_row, heads: tl.constexpr, tile_heads: tl.constexpr, tile: tl.constexpr):
    """The program's atom, heads and edges, and which are there; rows times features may be beyond 32 bits."""
    atom = tl.load(atoms + first_row + tl.program_id(0))
    start = tl.load(starts + atom)
    k, head = tl.arange(0, tile), tl.arange(0, tile_heads)
    return atom.to(tl.int64), head, start.to(tl.int64) + k, head < heads, k < tl.load(starts + atom + 1) - start


@triton.jit
def _rows(tensor, row, there, first, width: tl.constexpr, tile_width: tl.constexpr):
    """Where some features of some rows are, and which are there."""
    feature = first + tl.arange(0, tile_width)
    return tensor + row[:, None] * width + feature[None, :], there[:, None] & (feature[None, :] < width)


@triton.jit
def _load_rows(tensor, row, there, first, width: tl.constexpr, tile_width: tl.constexpr):
    place, mask = _rows(tensor, row, there, first, width, tile_width)
    return tl.load(place, mask=mask, other=0.0)


@triton.jit
def _products(
    left, left_row, left_there, right, right_row, right_there, total, width: tl.constexpr, tile_width: tl.constexpr
):
    """total + left · right, row by row of each, over all features."""
    for first in range(0, width, tile_width):
        a = _load_rows(left, left_row, left_there, first, width, tile_width)
        b = _load_rows(right, right_row, right_there, first, width, tile_width)
        total += tl.dot(a, tl.trans(b), input_precision="ieee")
    return total


@triton.jit
def _bounded(products, largest: tl.constexpr):
    """tanh(x / L), by an exponential that cannot overflow."""
    power = tl.exp(-2.0 / largest * tl.abs(products))
    size = (1.0 - power) / (1.0 + power)
    return tl.where(products < 0.0, -size, size)


@triton.jit(do_not_specialize=_CHANGING)
def edge_value(
    query, messages, bias, envelope, out, atoms, starts, first_row,
    heads: tl.constexpr, width: tl.constexpr, largest: tl.constexpr,
    tile_heads: tl.constexpr, tile: tl.constexpr, tile_width: tl.constexpr,
):  # fmt: skip
    """O."""
    atom, head, edge, is_head, is_edge = _around(atoms, starts, first_row, heads, tile_heads, tile)
    there, asking = is_head[:, None] & is_edge[None, :], atom * heads + head
    phi = tl.load(envelope + edge, mask=is_edge, other=0.0)
    radial = tl.load(bias + edge[None, :] * heads + head[:, None], mask=there, other=0.0)
    products = tl.zeros((tile_heads, tile), dtype=phi.dtype)
    products = _products(query, asking, is_head, messages, edge, is_edge, products, width, tile_width)
    weight = softmax_with_sink(largest * _bounded(products, largest) + radial, phi, there) * phi[None, :]
    for first in range(0, width, tile_width):
        message = _load_rows(messages, edge, is_edge, first, width, tile_width)
        place, mask = _rows(out, asking, is_head, first, width, tile_width)
        tl.store(place, tl.dot(weight, message, input_precision="ieee"), mask=mask)


@triton.jit(do_not_specialize=_CHANGING)
def edge_gradient(
    query, messages, bias, envelope, outer, to_query, to_messages, to_bias, to_envelope, atoms, starts, first_row,
    heads: tl.constexpr, width: tl.constexpr, largest: tl.constexpr,
    tile_heads: tl.constexpr, tile: tl.constexpr, tile_width: tl.constexpr,
):  # fmt: skip
    """Gradients of Σ G · O in queries, messages, logits and envelopes."""
    atom, head, edge, is_head, is_edge = _around(atoms, starts, first_row, heads, tile_heads, tile)
    there, asking = is_head[:, None] & is_edge[None, :], atom * heads + head
    phi = tl.load(envelope + edge, mask=is_edge, other=0.0)
    at_bias = edge[None, :] * heads + head[:, None]
    radial = tl.load(bias + at_bias, mask=there, other=0.0)
    nothing = tl.zeros((tile_heads, tile), dtype=phi.dtype)
    products = _products(query, asking, is_head, messages, edge, is_edge, nothing, width, tile_width)
    to_weight = _products(outer, asking, is_head, messages, edge, is_edge, nothing, width, tile_width)
    bounded = _bounded(products, largest)
    share = softmax_with_sink(largest * bounded + radial, phi, there)
    weight = share * phi[None, :]
    to_share = share * (to_weight - tl.sum(to_weight * weight, 1)[:, None])
    to_score = to_share * phi[None, :]
    to_product = to_score * (1.0 - bounded * bounded)
    tl.store(to_bias + at_bias, to_score, mask=there)
    tl.store(to_envelope + edge, tl.sum(to_share, 0), mask=is_edge)
    for first in range(0, width, tile_width):
        message = _load_rows(messages, edge, is_edge, first, width, tile_width)
        asked = _load_rows(query, asking, is_head, first, width, tile_width)
        outside = _load_rows(outer, asking, is_head, first, width, tile_width)
        place, mask = _rows(to_query, asking, is_head, first, width, tile_width)
        tl.store(place, tl.dot(to_product, message, input_precision="ieee"), mask=mask)
        to_message = tl.dot(tl.trans(weight), outside, input_precision="ieee")
        to_message += tl.dot(tl.trans(to_product), asked, input_precision="ieee")
        place, mask = _rows(to_messages, edge, is_edge, first, width, tile_width)
        tl.store(place, to_message, mask=mask)


@triton.jit(do_not_specialize=_CHANGING)
def edge_tangent(
    query, messages, bias, envelope, d_query, d_messages, d_bias, d_envelope, outer,
    d_out, d_to_query, d_to_messages, d_to_bias, d_to_envelope, atoms, starts, first_row,
    heads: tl.constexpr, width: tl.constexpr, largest: tl.constexpr,
    tile_heads: tl.constexpr, tile: tl.constexpr, tile_width: tl.constexpr, with_gradient: tl.constexpr,
):  # fmt: skip
    """Derivatives of O and, if asked for, of all that `edge_gradient` gives, along moves of its inputs but G."""
    atom, head, edge, is_head, is_edge = _around(atoms, starts, first_row, heads, tile_heads, tile)
    there, asking = is_head[:, None] & is_edge[None, :], atom * heads + head
    phi = tl.load(envelope + edge, mask=is_edge, other=0.0)
    d_phi = tl.load(d_envelope + edge, mask=is_edge, other=0.0)
    at_bias = edge[None, :] * heads + head[:, None]
    radial = tl.load(bias + at_bias, mask=there, other=0.0)
    d_radial = tl.load(d_bias + at_bias, mask=there, other=0.0)
    nothing = tl.zeros((tile_heads, tile), dtype=phi.dtype)
    products = _products(query, asking, is_head, messages, edge, is_edge, nothing, width, tile_width)
    d_products = _products(d_query, asking, is_head, messages, edge, is_edge, nothing, width, tile_width)
    d_products = _products(query, asking, is_head, d_messages, edge, is_edge, d_products, width, tile_width)
    bounded = _bounded(products, largest)
    slope = 1.0 - bounded * bounded
    share = softmax_with_sink(largest * bounded + radial, phi, there)
    d_share = softmax_with_sink_tangent(share, phi, slope * d_products + d_radial, d_phi)
    weight = share * phi[None, :]
    d_weight = d_share * phi[None, :] + share * d_phi[None, :]
    to_product, d_to_product = nothing, nothing
    if with_gradient:
        to_weight = _products(outer, asking, is_head, messages, edge, is_edge, nothing, width, tile_width)
        d_to_weight = _products(outer, asking, is_head, d_messages, edge, is_edge, nothing, width, tile_width)
        centred = to_weight - tl.sum(to_weight * weight, 1)[:, None]
        d_centred = d_to_weight - tl.sum(d_to_weight * weight + to_weight * d_weight, 1)[:, None]
        to_share, d_to_share = share * centred, d_share * centred + share * d_centred
        to_score, d_to_score = to_share * phi[None, :], d_to_share * phi[None, :] + to_share * d_phi[None, :]
        to_product = to_score * slope
        d_to_product = d_to_score * slope - to_score * 2.0 / largest * bounded * slope * d_products
        tl.store(d_to_bias + at_bias, d_to_score, mask=there)
        tl.store(d_to_envelope + edge, tl.sum(d_to_share, 0), mask=is_edge)
    for first in range(0, width, tile_width):
        message = _load_rows(messages, edge, is_edge, first, width, tile_width)
        d_message = _load_rows(d_messages, edge, is_edge, first, width, tile_width)
        d_gathered = tl.dot(d_weight, message, input_precision="ieee")
        place, mask = _rows(d_out, asking, is_head, first, width, tile_width)
        d_gathered += tl.dot(weight, d_message, input_precision="ieee")
        tl.store(place, d_gathered, mask=mask)
        if with_gradient:
            asked = _load_rows(query, asking, is_head, first, width, tile_width)
            d_asked = _load_rows(d_query, asking, is_head, first, width, tile_width)
            outside = _load_rows(outer, asking, is_head, first, width, tile_width)
            change = tl.dot(d_to_product, message, input_precision="ieee")
            place, mask = _rows(d_to_query, asking, is_head, first, width, tile_width)
            change += tl.dot(to_product, d_message, input_precision="ieee")
            tl.store(place, change, mask=mask)
            to_message = tl.dot(tl.trans(d_weight), outside, input_precision="ieee")
            to_message += tl.dot(tl.trans(d_to_product), asked, input_precision="ieee")
            to_message += tl.dot(tl.trans(to_product), d_asked, input_precision="ieee")
            place, mask = _rows(d_to_messages, edge, is_edge, first, width, tile_width)
            tl.store(place, to_message, mask=mask)
