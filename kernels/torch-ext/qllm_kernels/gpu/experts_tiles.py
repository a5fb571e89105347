"""The kernel of experts.py: a tile of the products of tokens with the weights of their experts."""

from __future__ import annotations

import triton
import triton.language as tl

from .weights_tiles import store_tile, tile


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
):
    """One tile of y [tokens, outputs], or of y float32 [SPLITS, tokens, outputs]: see weights_tiles.py.

    words, scale and zero_point are those of `experts` weights, one after the other. Without `blocks` a program takes a
    token, with the weight that `chosen` says; else one of the blocks that experts_order.py made, of its `order`.
    """
    count = tokens  # of blocks
    if blocks is not None:
        count = tl.num_programs(0) // tl.cdiv(outputs, BLOCK_N)
    block = tl.program_id(0) % count  # programs side by side share their weights, if those are of one expert
    row = tl.program_id(0) // count * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    place = tl.arange(0, BLOCK_M)
    if blocks is None:
        expert = tl.load(chosen + block)
        there = place < 1
        token = (block + 0 * place).to(tl.int64)
    else:
        expert = tl.load(blocks + block)
        place += tl.load(blocks + count + block)
        end = tl.load(blocks + 2 * count + block)
        if tl.load(blocks + count + block) >= end:
            return
        there = place < end
        token = tl.load(order + place, there, other=0).to(tl.int64)
    if (expert < 0) | (expert >= experts):
        zeros = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        store_tile(y, zeros, token, row, there, split, tokens, outputs, SPLITS)
        return
    row_read = expert.to(tl.int64) * outputs + tl.minimum(row, outputs - 1)
    total = tile(
        *(x + token[None, :] * x_stride, words, scale, zero_point, row_read, there[None, :], split, tokens),
        *(LENGTH, BITS, GROUP_SIZE, WAY, READ, AT_ONCE, BLOCK_N, BLOCK_M, SPLITS, WARPS, STAGES),
    )
    store_tile(y, total, token, row, there, split, tokens, outputs, SPLITS)
