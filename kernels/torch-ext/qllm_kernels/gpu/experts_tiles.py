"""The kernels of experts.py and experts_integers.py: a tile of the products of tokens with weights of experts.

Weights of experts lie one after the other, so that a row of any of them is a row of one large weight. Tiles are those
of weights_tiles.py and integer_tiles.py; here it is found out which tokens and which rows a program takes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import integer_tiles, weights_tiles
from .planar import in_blocks
from .weights_tiles import store_tile

_of_floats, _of_integers = weights_tiles.tile, integer_tiles.tile


@triton.jit(do_not_specialize=["tokens"])
def expert_product(
    y,
    x,
    chosen,
    order,
    blocks,
    words,
    scale,
    zero_point,
    tokens,
    outputs,
    experts,
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
    CHOICES: tl.constexpr,
):
    """One tile of y [rows, outputs], or of y float32 [SPLITS, rows, outputs]: see weights_tiles.py.

    words, scale and zero_point are those of `experts` weights. Without `blocks` a program takes a row, with the weight
    that `chosen` says; else one of the blocks that experts_order.py made, of its `order`. x [rows / CHOICES, LENGTH].
    """
    split = tl.program_id(1)
    expert, token, there, row, empty = _taken(chosen, order, blocks, tokens, outputs, BLOCK_N, BLOCK_M)
    if empty:
        return
    if (expert < 0) | (expert >= experts):
        zeros = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        store_tile(y, zeros, token, row, there, split, tokens, outputs, SPLITS)
        return
    row_read = expert.to(tl.int64) * outputs + tl.minimum(row, outputs - 1)
    total = _of_floats(
        *(
            x + (token // CHOICES)[None, :] * x_stride,
            words,
            scale,
            zero_point,
            row_read,
            there[None, :],
            split,
            tokens,
        ),
        *(LENGTH, BITS, GROUP_SIZE, WAY, READ, AT_ONCE, BLOCK_N, BLOCK_M, SPLITS, WARPS, STAGES),
    )
    store_tile(y, total, token, row, there, split, tokens, outputs, SPLITS)


@triton.jit(do_not_specialize=["tokens"])
def expert_product_of_integers(
    y,
    codes,
    x_scale,
    x_zero,
    x_sums,
    chosen,
    order,
    blocks,
    words,
    scale,
    zero_point,
    tokens,
    outputs,
    experts,
    LENGTH: tl.constexpr,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SPAN: tl.constexpr,
    AT_ONCE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SPLITS: tl.constexpr,
    CHOICES: tl.constexpr,
):
    """As `expert_product`, for tokens that are quantized: see integer_tiles.py. Parts have the scale of their token."""
    split = tl.program_id(1)
    expert, token, there, row, empty = _taken(chosen, order, blocks, tokens, outputs, BLOCK_N, BLOCK_M)
    if empty:
        return
    if (expert < 0) | (expert >= experts):
        zeros = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        store_tile(y, zeros, token, row, there, split, tokens, outputs, SPLITS)
        return
    row_read = expert.to(tl.int64) * outputs + tl.minimum(row, outputs - 1)
    vector = token // CHOICES
    codes += vector[None, :] * in_blocks(LENGTH)
    if x_zero is not None:
        x_zero += vector
    if x_sums is not None:
        x_sums += vector
    total = _of_integers(
        *(codes, x_zero, x_sums, words, scale, zero_point, row_read, split, tokens // CHOICES),
        *(LENGTH, BITS, GROUP_SIZE, SPAN, AT_ONCE, SPLITS, BLOCK_M, BLOCK_N),
    )
    total *= tl.load(x_scale + vector, there, other=0).to(tl.float32)[None, :]
    store_tile(y, total, token, row, there, split, tokens, outputs, SPLITS)


@triton.jit
def _taken(chosen, order, blocks, tokens, outputs, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """What a program takes: an expert, tokens int64 [M] and which of them are there, rows [N]; and whether nothing."""
    count = tokens  # of blocks
    if blocks is not None:
        count = tl.num_programs(0) // tl.cdiv(outputs, BLOCK_N)
    block = tl.program_id(0) % count  # programs side by side share their weights, if those are of one expert
    row = tl.program_id(0) // count * BLOCK_N + tl.arange(0, BLOCK_N)
    place = tl.arange(0, BLOCK_M)
    if blocks is None:
        there = place < 1
        return tl.load(chosen + block), (block + 0 * place).to(tl.int64), there, row, False
    else:
        first, end = tl.load(blocks + count + block), tl.load(blocks + 2 * count + block)
        there = first + place < end
        token = tl.load(order + first + place, there, other=0).to(tl.int64)
        return tl.load(blocks + block), token, there, row, first >= end
