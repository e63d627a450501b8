"""Grouped products as Triton kernels, for the product and for its derivatives of every order.

A product of rows with matrices is bilinear, and so is the sum of outer products over the rows of a group; the
derivatives of either are made of the two. Two kernels that call each other are therefore exact at every order.

Importing this module imports Triton. On a machine without a GPU the kernels run in Triton's interpreter, for tests: set
TRITON_INTERPRET=1 before Triton is imported.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from janus_moe.groups import ElementGroups

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(
        "these kernels need the package triton, which is not installed; install it (Linux, `pip install triton`), "
        "or use what needs none: grouped_product, and the formulas PLAIN or fused_formulas()"
    ) from error

# Rows of one program, and how many rows of a group are summed one after the other before others join in.
_TILE_ROWS = 64
_CHUNK_ROWS = 2048
_TILE_INNER = 32
_LARGEST_TILE = 64
# Numbers that change from batch to batch: a kernel is not compiled anew where one is divisible by 16.
_CHANGING = ("groups",)


def triton_product(
    rows: Float[Tensor, "rows in"], weights: Float[Tensor, "present in out"], groups: ElementGroups
) -> Float[Tensor, "rows out"]:
    """`rows[r] @ weights[g]` for every row r of every group g, in one kernel; a `GroupedProduct`.

    Sums are accumulated in the precision of the rows, without rounding to TF32. Any sizes and strides; derivatives of
    every order, backward and forward; no synchronisation with the host.

    Raises:
        ValueError: rows that are not on a CUDA device (outside Triton's interpreter), or neither float32 nor float64.
    """
    require_kernels_run_on(rows)
    product: Tensor = _Product.apply(rows, weights, groups.ends, groups.counts)
    return product


def require_kernels_run_on(tensor: Tensor) -> None:
    """Raises ValueError where kernels cannot compute with this tensor."""
    if tensor.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"kernels compute in float32 or float64, and this tensor is {tensor.dtype}; cast it first")
    if not (tensor.is_cuda or triton.knobs.runtime.interpret):
        raise ValueError(
            f"Triton kernels run on CUDA devices, and this tensor is on '{tensor.device}'; move model and graph to "
            "'cuda', or use what runs anywhere: grouped_product, and the formulas PLAIN or fused_formulas()"
        )


def tile_of(size: int, largest: int = _LARGEST_TILE) -> int:
    """The power of two that a tile over this many numbers has; tensor cores start at 16."""
    return max(16, min(largest, triton.next_power_of_2(size)))


class _Product(Function):
    """Rows times the matrix of their group.

    The groups' ends are an argument of their own, so that function transforms see them: a plan made inside of one holds
    tensors that belong to it.
    """

    @staticmethod
    def forward(rows: Tensor, weights: Tensor, ends: Tensor, counts: tuple[int, ...]) -> Tensor:
        inner, outer = weights.shape[1:]
        product = rows.new_empty(rows.shape[0], outer)
        tiles = sum(triton.cdiv(count, _TILE_ROWS) for count in counts)
        if not (tiles and outer):
            return product
        tile_outer = tile_of(outer)
        with torch.cuda.device_of(rows):
            _multiply[(tiles, triton.cdiv(outer, tile_outer))](
                rows, weights, product, ends, len(counts), inner, outer,
                *rows.stride(), *weights.stride(), *product.stride(),
                block_groups=triton.next_power_of_2(len(counts)), tile_rows=_TILE_ROWS,
                tile_inner=_TILE_INNER, tile_outer=tile_outer,
            )  # fmt: skip
        return product

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _keep_factors(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        rows, weights = ctx.saved_tensors
        to_rows = _Product.apply(gradient, weights.mT, ctx.ends, ctx.counts) if ctx.needs_input_grad[0] else None
        to_weights = _OuterProduct.apply(rows, gradient, ctx.ends, ctx.counts) if ctx.needs_input_grad[1] else None
        return to_rows, to_weights, None, None

    @staticmethod
    def jvp(ctx: Any, rows_tangent: Tensor | None, weights_tangent: Tensor | None, *_: None) -> Tensor:
        return _product_rule(_Product, ctx, rows_tangent, weights_tangent)


class _OuterProduct(Function):
    """For every group the sum of `outer(left[r], right[r])` over its rows: the derivative of `_Product` in weights."""

    @staticmethod
    def forward(left: Tensor, right: Tensor, ends: Tensor, counts: tuple[int, ...]) -> Tensor:
        present, shape = len(counts), (left.shape[1], right.shape[1])
        chunks = sum(triton.cdiv(count, _CHUNK_ROWS) for count in counts)
        sums = left.new_empty(chunks, *shape)
        if not sums.numel():
            return left.new_zeros(present, *shape)
        tiles = tile_of(shape[0]), tile_of(shape[1])
        block_groups = triton.next_power_of_2(present)
        with torch.cuda.device_of(left):
            _add_outer_products[(chunks, triton.cdiv(shape[0], tiles[0]), triton.cdiv(shape[1], tiles[1]))](
                left, right, sums, ends, present, *shape,
                *left.stride(), *right.stride(),
                block_groups=block_groups, chunk_rows=_CHUNK_ROWS, tile_rows=_TILE_INNER,
                tile_left=tiles[0], tile_right=tiles[1],
            )  # fmt: skip
            if all(0 < count <= _CHUNK_ROWS for count in counts):
                return sums  # chunks are groups
            size, result = shape[0] * shape[1], left.new_empty(present, *shape)
            _add_chunks[(present, triton.cdiv(size, 1024))](
                sums, result, ends, present, size,
                block_groups=block_groups, chunk_rows=_CHUNK_ROWS, block=1024,
            )  # fmt: skip
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _keep_factors(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        left, right = ctx.saved_tensors
        to_left = _Product.apply(right, gradient.mT, ctx.ends, ctx.counts) if ctx.needs_input_grad[0] else None
        to_right = _Product.apply(left, gradient, ctx.ends, ctx.counts) if ctx.needs_input_grad[1] else None
        return to_left, to_right, None, None

    @staticmethod
    def jvp(ctx: Any, left_tangent: Tensor | None, right_tangent: Tensor | None, *_: None) -> Tensor:
        return _product_rule(_OuterProduct, ctx, left_tangent, right_tangent)


def _keep_factors(ctx: Any, inputs: Any) -> None:
    first, second, ctx.ends, ctx.counts = inputs
    ctx.save_for_backward(first, second)
    ctx.save_for_forward(first, second)


def _product_rule(product: type[Function], ctx: Any, along_first: Tensor | None, along_second: Tensor | None) -> Tensor:
    """The forward derivative of a product of two factors, of which one at least moves."""
    first, second = ctx.saved_tensors
    terms = [] if along_first is None else [product.apply(along_first, second, ctx.ends, ctx.counts)]
    if along_second is not None:
        terms.append(product.apply(first, along_second, ctx.ends, ctx.counts))
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


@triton.jit
def _part_of_group(ends, groups, part, part_rows: tl.constexpr, block_groups: tl.constexpr):
    """The group that this part of the rows belongs to, the part's first row, and one past the group's last row.

    Every group is cut into parts of its own, counted through all groups. A program finds its part from the groups'
    ends, which are few, so nothing about parts has to be brought to the device.
    """
    index = tl.arange(0, block_groups)
    end = tl.load(ends + index, mask=index < groups, other=0)
    start = tl.load(ends + index - 1, mask=(index > 0) & (index < groups), other=0)
    parts = (end - start + part_rows - 1) // part_rows
    before = tl.cumsum(parts, 0) - parts
    mine = (before <= part) & (part < before + parts)
    group = tl.sum(tl.where(mine, index, 0), 0)
    first = tl.sum(tl.where(mine, start + (part - before) * part_rows, 0), 0)
    last = tl.sum(tl.where(mine, end, 0), 0)
    # Rows times features may be beyond 32 bits.
    return group.to(tl.int64), first.to(tl.int64), last.to(tl.int64)


@triton.jit(do_not_specialize=_CHANGING)
def _multiply(
    rows, weights, product, ends, groups, inner, outer,
    rows_stride, rows_inner_stride, weights_stride, weights_inner_stride, weights_outer_stride,
    product_stride, product_outer_stride,
    block_groups: tl.constexpr, tile_rows: tl.constexpr, tile_inner: tl.constexpr, tile_outer: tl.constexpr,
):  # fmt: skip
    """One tile of the product: some rows of one group, some columns of its matrix."""
    group, first, last = _part_of_group(ends, groups, tl.program_id(0), tile_rows, block_groups)
    row = first + tl.arange(0, tile_rows)
    column = tl.program_id(1) * tile_outer + tl.arange(0, tile_outer)
    total = tl.zeros((tile_rows, tile_outer), dtype=product.dtype.element_ty)
    for start in range(0, inner, tile_inner):
        k = start + tl.arange(0, tile_inner)
        left = tl.load(
            rows + row[:, None] * rows_stride + k[None, :] * rows_inner_stride,
            mask=(row[:, None] < last) & (k[None, :] < inner), other=0.0,
        )  # fmt: skip
        right = tl.load(
            weights + group * weights_stride
            + k[:, None] * weights_inner_stride + column[None, :] * weights_outer_stride,
            mask=(k[:, None] < inner) & (column[None, :] < outer), other=0.0,
        )  # fmt: skip
        total += tl.dot(left, right, input_precision="ieee")
    tl.store(
        product + row[:, None] * product_stride + column[None, :] * product_outer_stride,
        total, mask=(row[:, None] < last) & (column[None, :] < outer),
    )  # fmt: skip


@triton.jit(do_not_specialize=_CHANGING)
def _add_outer_products(
    left, right, sums, ends, groups, left_width, right_width,
    left_stride, left_feature_stride, right_stride, right_feature_stride,
    block_groups: tl.constexpr, chunk_rows: tl.constexpr, tile_rows: tl.constexpr,
    tile_left: tl.constexpr, tile_right: tl.constexpr,
):  # fmt: skip
    """One tile of the sum of outer products over one chunk of the rows of a group."""
    chunk = tl.program_id(0)
    _, first, last = _part_of_group(ends, groups, chunk, chunk_rows, block_groups)
    last = tl.minimum(last, first + chunk_rows)
    i = tl.program_id(1) * tile_left + tl.arange(0, tile_left)
    j = tl.program_id(2) * tile_right + tl.arange(0, tile_right)
    total = tl.zeros((tile_left, tile_right), dtype=sums.dtype.element_ty)
    for start in range(0, last - first, tile_rows):
        row = first + start + tl.arange(0, tile_rows)
        a = tl.load(
            left + i[:, None] * left_feature_stride + row[None, :] * left_stride,
            mask=(i[:, None] < left_width) & (row[None, :] < last), other=0.0,
        )  # fmt: skip
        b = tl.load(
            right + row[:, None] * right_stride + j[None, :] * right_feature_stride,
            mask=(row[:, None] < last) & (j[None, :] < right_width), other=0.0,
        )  # fmt: skip
        total += tl.dot(a, b, input_precision="ieee")
    place = chunk.to(tl.int64) * left_width * right_width + i[:, None] * right_width + j[None, :]
    tl.store(sums + place, total, mask=(i[:, None] < left_width) & (j[None, :] < right_width))


@triton.jit(do_not_specialize=_CHANGING)
def _add_chunks(
    sums, result, ends, groups, size,
    block_groups: tl.constexpr, chunk_rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The sum over the chunks of one group, always in the same order; zero for a group without rows."""
    group = tl.program_id(0)
    index = tl.arange(0, block_groups)
    end = tl.load(ends + index, mask=index < groups, other=0)
    start = tl.load(ends + index - 1, mask=(index > 0) & (index < groups), other=0)
    chunks = (end - start + chunk_rows - 1) // chunk_rows
    first = tl.sum(tl.where(index < group, chunks, 0), 0)
    mine = tl.sum(tl.where(index == group, chunks, 0), 0)
    place = tl.program_id(1) * block + tl.arange(0, block)
    total = tl.zeros((block,), dtype=sums.dtype.element_ty)
    for chunk in range(mine):
        total += tl.load(sums + (first + chunk).to(tl.int64) * size + place, mask=place < size, other=0.0)
    tl.store(result + group.to(tl.int64) * size + place, total, mask=place < size)
