"""The kernels of weights_many.py: tiles of products with up to three weights of one format, and their sums of splits.

A program finds out by its number which weight it belongs to. What it needs of it is selected, not branched to: then the
compiler still knows how the addresses are aligned, and reads as much at once as for a single weight.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .weights_tiles import add_up, product_tile


@triton.jit(do_not_specialize=["tokens"])
def product_many(
    y0,
    y1,
    y2,
    x,
    words0,
    words1,
    words2,
    scale0,
    scale1,
    scale2,
    zero_point0,
    zero_point1,
    zero_point2,
    bias0,
    bias1,
    bias2,
    tokens,
    outputs0,
    outputs1,
    outputs2,
    x_stride,
    LENGTH: tl.constexpr,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    WAY: tl.constexpr,
    READ: tl.constexpr,
    AT_ONCE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SPLITS: tl.constexpr,
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """As `product` of weights_tiles.py, for weights 0, 1 and 2, or only 0 and 1, where those of 2 are None.

    Tiles of one weight follow those of the one before it. Zero points and biases are there for all weights, or none.
    """
    tiles_m = tl.cdiv(tokens, BLOCK_M)
    which, program = _which(
        tl.program_id(0), tiles_m * tl.cdiv(outputs0, BLOCK_N), tiles_m * tl.cdiv(outputs1, BLOCK_N), words2
    )
    y, outputs = _of(which, y0, y1, y2), _of(which, outputs0, outputs1, outputs2)
    words, scale = _of(which, words0, words1, words2), _of(which, scale0, scale1, scale2)
    zero_point, bias = zero_point0, bias0
    if zero_point0 is not None:
        zero_point = _of(which, zero_point0, zero_point1, zero_point2)
    if bias0 is not None:
        bias = _of(which, bias0, bias1, bias2)
    product_tile(
        *(y, x, words, scale, zero_point, bias, program, tokens, outputs, x_stride),
        *(LENGTH, BITS, GROUP_SIZE, WAY, READ, AT_ONCE, BLOCK_N, BLOCK_M, SPLITS, WARPS, STAGES),
    )


@triton.jit(do_not_specialize=["tokens"])
def add_splits_many(
    y0,
    y1,
    y2,
    parts0,
    parts1,
    parts2,
    bias0,
    bias1,
    bias2,
    tokens,
    outputs0,
    outputs1,
    outputs2,
    SPLITS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """As `add_splits` of weights_tiles.py, for what `product_many` leaves."""
    which, program = _which(
        tl.program_id(0), tl.cdiv(tokens * outputs0, SIZE), tl.cdiv(tokens * outputs1, SIZE), parts2
    )
    y, parts = _of(which, y0, y1, y2), _of(which, parts0, parts1, parts2)
    outputs, bias = _of(which, outputs0, outputs1, outputs2), bias0
    if bias0 is not None:
        bias = _of(which, bias0, bias1, bias2)
    add_up(y, parts, bias, program, tokens * outputs, outputs, SPLITS, SIZE)


@triton.jit
def _which(program, count0, count1, third):
    """To which weight a program belongs, 0, 1 or 2, and its number among those of that weight."""
    which = (program >= count0).to(tl.int32)
    before = which * count0
    if third is not None:
        last = (program >= count0 + count1).to(tl.int32)
        which += last
        before += last * count1
    return which, program - before


@triton.jit
def _of(which, of0, of1, of2):
    """That of a weight, all of one type. of2 may be None."""
    found = tl.where(which == 1, of1, of0)
    if of2 is not None:
        found = tl.where(which == 2, of2, found)
    return found
