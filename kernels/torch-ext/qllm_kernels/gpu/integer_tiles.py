"""The kernels of integers.py: a tile of int8 products with packed weights, and the sum of splits.

    y[t, o] = scale[t] sum over groups G of scale[o, G] sum over i in G of (x[t, i] - zero[t]) (w[o, i] - zero[o, G])

The inner sum is exact, and so is what zero points add to it; the sum over groups is in float32. Weights become int8 in
registers (see unpack_integers.py), and tokens are int8. Both may still have a zero point in them (t and z):

    sum (x - t) (w - z) = sum x w - t sum w - z sum (x - t)      x, w: the int8 that are multiplied

Tokens do if they have 8 bits and are not symmetric, and weights if they have 8 bits and are not. Weights of fewer bits
can lose theirs before they are multiplied, which costs each of them two operations in registers of four, or after,
which costs each product of a group one: that is less with few tokens, and with one scale for a whole row.

Sums over w come from the tensor cores, as products with columns of ones; those over x - t from tokens.py.

Weights are the first factor, which the tensor cores of Hopper can read from registers, where unpacking leaves it. So a
tile is [outputs, tokens], and few tokens cost little.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import INTERPRETED as _INTERPRETED
from .planar import BLOCK, codes_at, in_blocks, rest_of, row_words
from .rounding import rounded
from .unpack_integers import codes_block, int8_block, int8_bytes, joined

INTERPRETED = tl.constexpr(_INTERPRETED)
_TILES_SIDE_BY_SIDE = tl.constexpr(16)


@triton.jit(do_not_specialize=["tokens"])
def product(
    y,
    codes,
    x_scale,
    x_zero,
    x_sums,
    words,
    scale,
    zero_point,
    bias,
    tokens,
    outputs,
    LENGTH: tl.constexpr,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SPAN: tl.constexpr,
    AT_ONCE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One tile of y [tokens, outputs], or of y float32 [SPLITS, tokens, outputs], whose sum is without scale and bias.

    GROUP_SIZE: 32, 64 or a multiple of 128. SPAN: codes that are summed as integers before they get a scale: 32, 64 or
    128 and no more than a group, or whole rows, rounded up to blocks. x_zero and x_sums are those of `Tokens`; with
    x_sums, zero points of weights are taken off after the products. Program (tile, split) takes its share of the blocks
    of rows, AT_ONCE of them in each pass of its loop.
    """
    split = tl.program_id(1)
    tile_m, tile_n = _tile(tl.program_id(0), tokens, outputs, BLOCK_M, BLOCK_N)
    token, row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    here = token < tokens
    # beyond the last token and row the last ones are multiplied again, and not stored
    token_read, row_read = tl.minimum(token, tokens - 1).to(tl.int64), tl.minimum(row, outputs - 1).to(tl.int64)
    codes += token_read[None, :] * in_blocks(LENGTH)
    if x_zero is not None:
        x_zero += token_read
    if x_sums is not None:
        x_sums += token_read
    total = tile(
        *(codes, x_zero, x_sums, words, scale, zero_point, row_read, split, tokens),
        *(LENGTH, BITS, GROUP_SIZE, SPAN, AT_ONCE, SPLITS, BLOCK_M, BLOCK_N),
    )
    if SPLITS == 1:
        total *= tl.load(x_scale + token, here, other=0).to(tl.float32)[None, :]
        if bias is not None:
            total += tl.load(bias + row_read).to(tl.float32)[:, None]
    else:
        y += split.to(tl.int64) * tokens * outputs
    place = y + token_read[None, :] * outputs + row[:, None]
    tl.store(place, rounded(total, y.dtype.element_ty), here[None, :] & (row < outputs)[:, None])


@triton.jit
def tile(
    codes,
    x_zero,
    x_sums,
    words,
    scale,
    zero_point,
    row,
    split,
    tokens,
    LENGTH: tl.constexpr,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SPAN: tl.constexpr,
    AT_ONCE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Products float32 [N, M], without the scale of tokens, of a split of rows int64 [N] of a weight with M tokens.

    codes [1, M], x_zero and x_sums [M]: addresses of each token's, which are read of all M. `tokens`: how many there
    are in all. The other arguments are those of `product`.
    """
    GROUPS: tl.constexpr = (LENGTH + GROUP_SIZE - 1) // GROUP_SIZE
    BLOCKS: tl.constexpr = LENGTH // BLOCK
    STEPS: tl.constexpr = (BLOCKS + SPLITS - 1) // SPLITS
    REST: tl.constexpr = rest_of(LENGTH)
    PART: tl.constexpr = 32  # the fewest codes that tensor cores take
    PARTS: tl.constexpr = 4 if SPAN == 32 else (2 if SPAN == 64 else 1)  # of a block, each multiplied at once
    SIZE: tl.constexpr = 128 // PARTS
    FOLDED: tl.constexpr = x_sums is not None
    ONES: tl.constexpr = BLOCK_M if BLOCK_M < 16 else 16  # as wide as a product must be to read the same registers
    words += row[:, None] * row_words(LENGTH, BITS)
    scale += row * GROUPS
    if zero_point is not None:
        zero_point += row * GROUPS
    if x_zero is not None and ONES == BLOCK_M:  # few enough to stay in registers
        x_zero = -tl.load(x_zero)
    terms = (scale, zero_point, x_zero, x_sums, tokens)

    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    sums, w_sums = tl.zeros((BLOCK_N, BLOCK_M), tl.int32), tl.zeros((BLOCK_N, ONES), tl.int32)
    first, last = split * STEPS, tl.minimum(split * STEPS + STEPS, BLOCKS)
    if INTERPRETED:
        first, last = number(first), number(last)
    for block in tl.range(first, last, loop_unroll_factor=AT_ONCE):
        if BITS < 8:
            if FOLDED:
                parts = joined(codes_block(words + block * (8 * BITS), BITS), PARTS)
            else:
                complements = (
                    _complement(zero_point, block, 0 * PART, GROUP_SIZE, BITS, BLOCK_N),
                    _complement(zero_point, block, 1 * PART, GROUP_SIZE, BITS, BLOCK_N),
                    _complement(zero_point, block, 2 * PART, GROUP_SIZE, BITS, BLOCK_N),
                    _complement(zero_point, block, 3 * PART, GROUP_SIZE, BITS, BLOCK_N),
                )
                parts = joined(int8_block(words + block * (8 * BITS), complements, BITS), PARTS)
        for part in tl.static_range(PARTS):
            place = block * BLOCK + part * SIZE + tl.arange(0, SIZE)
            if BITS < 8:
                w = parts[part]
            else:
                w = int8_bytes(tl.load(words.to(tl.pointer_type(tl.int8)) + place[None, :]))
            x = tl.load(codes + place[:, None])
            if (part + 1) * SIZE % SPAN == 0:
                factors = _factors(terms, block, part * SIZE, GROUP_SIZE, SPAN, BITS, BLOCK_N)
            sums, w_sums = _multiplied(sums, w_sums, w, x, x_zero, part * SIZE, SPAN)
            if (part + 1) * SIZE % SPAN == 0:
                total += _scaled(sums, w_sums, x_zero, factors)

    if REST > 0:
        if split == SPLITS - 1:
            block = BLOCKS
            for part in tl.static_range((REST + PART - 1) // PART):
                place = part * PART + tl.arange(0, PART)
                there = (place < REST)[None, :]
                w = codes_at(words + block * (8 * BITS), place[None, :], there, REST, BITS)
                if BITS == 8:
                    w -= 128
                elif not FOLDED:
                    w -= _zero(zero_point, block, part * PART, GROUP_SIZE, BITS, BLOCK_N)
                x = tl.load(codes + (block * BLOCK + place)[:, None])
                w = tl.where(there, w, 0).to(tl.int8)
                sums, w_sums = _multiplied(sums, w_sums, w, x, x_zero, part * PART, SPAN)
                if SPAN <= 128 and ((part + 1) * PART % SPAN == 0 or (part + 1) * PART >= REST):
                    factors = _factors(terms, block, part * PART, GROUP_SIZE, SPAN, BITS, BLOCK_N)
                    total += _scaled(sums, w_sums, x_zero, factors)
    if SPAN > 128:
        total += _scaled_row(sums, w_sums, terms, split, BITS)
    return total


@triton.jit
def add_splits(y, sums, x_scale, bias, tokens, outputs, SPLITS: tl.constexpr, COLUMNS: tl.constexpr):
    """y [tokens, outputs] of sums float32 [SPLITS, tokens, outputs], added in the order of splits."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = column < outputs
    total = tl.zeros((COLUMNS,), tl.float32)
    for split in range(SPLITS):
        total += tl.load(sums + (split * tokens + token) * outputs + column, here, other=0)
    total *= tl.load(x_scale + token).to(tl.float32)
    if bias is not None:
        total += tl.load(bias + column, here, other=0).to(tl.float32)
    tl.store(y + token * outputs + column, rounded(total, y.dtype.element_ty), here)


@triton.constexpr_function
def number(value):
    """A bound of a loop in Triton's interpreter: NumPy 2.4 does not take an array of one number for it."""
    return value.handle.data.item()


@triton.jit
def _tile(program, tokens, outputs, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which tile a program computes. Some tiles of tokens take turns, so that both factors stay in the L2 cache."""
    tiles_m, tiles_n = tl.cdiv(tokens, BLOCK_M), tl.cdiv(outputs, BLOCK_N)
    first = program // (_TILES_SIDE_BY_SIDE * tiles_n) * _TILES_SIDE_BY_SIDE
    side_by_side = tl.minimum(tiles_m - first, _TILES_SIDE_BY_SIDE)
    within = program % (_TILES_SIDE_BY_SIDE * tiles_n)
    return first + within % side_by_side, within // side_by_side


@triton.jit
def _multiplied(sums, w_sums, w, x, x_zero, OFFSET: tl.constexpr, SPAN: tl.constexpr):
    """sums [N, M] and, where tokens have zero points, w_sums [N, ONES] (columns alike), with a part of a span more."""
    if SPAN <= 128 and OFFSET % SPAN == 0:
        sums, w_sums = tl.zeros_like(sums), tl.zeros_like(w_sums)
    sums = tl.dot(w, x, sums, out_dtype=tl.int32)
    if x_zero is not None:
        w_sums = tl.dot(w, tl.full((w.shape[1], w_sums.shape[1]), 1, tl.int8), w_sums, out_dtype=tl.int32)
    return sums, w_sums


@triton.jit
def _factors(
    terms,
    block,
    OFFSET: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SPAN: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """What `_scaled` reads for a span: scales [N] and, with x_sums, minus zero points [N, 1] and sums of x [M].

    Before the products, so that they are on their way meanwhile.
    """
    scale, zero_point, _, x_sums, tokens = terms
    factor = tl.load(scale + _index(block, OFFSET, GROUP_SIZE)).to(tl.float32)
    if x_sums is None:
        return (factor,)
    else:
        x_sum = tl.load(x_sums + _index(block, OFFSET, SPAN) * tokens)
        return factor, _minus_zero(zero_point, block, OFFSET, GROUP_SIZE, BITS, BLOCK_N), x_sum


@triton.jit
def _scaled(sums, w_sums, x_zero, factors):
    """What a span of up to 128 codes adds, float32 [N, M]: its integers stay exact, 128 * 255 * 255 is below 2^24."""
    if x_zero is not None and w_sums.shape[1] == sums.shape[1]:
        sums += w_sums * x_zero[None, :]
    if len(factors) > 1:
        sums += factors[1] * factors[2][None, :]
    value = sums.to(tl.float32)
    if x_zero is not None and w_sums.shape[1] != sums.shape[1]:
        value -= tl.max(w_sums, 1)[:, None].to(tl.float32) * tl.load(x_zero)[None, :].to(tl.float32)
    return value * factors[0][:, None]


@triton.jit
def _scaled_row(sums, w_sums, terms, split, BITS: tl.constexpr):
    """As `_scaled`, for the part of rows that a split has seen: in 32 bits, which hold the sum of all of them."""
    scale, zero_point, x_zero, x_sums, _ = terms
    if x_zero is not None:
        if w_sums.shape[1] == sums.shape[1]:
            sums += w_sums * x_zero[None, :]
        else:
            sums -= tl.max(w_sums, 1)[:, None] * tl.load(x_zero)[None, :]
    if x_sums is not None:  # of whole tokens: once
        x_sum = tl.load(x_sums) * (split == 0)
        sums += _minus_zero(zero_point, 0, 0, BLOCK, BITS, sums.shape[0]) * x_sum[None, :]
    return sums.to(tl.float32) * tl.load(scale).to(tl.float32)[:, None]


@triton.jit
def _minus_zero(
    zero_point, block, OFFSET: tl.constexpr, GROUP_SIZE: tl.constexpr, BITS: tl.constexpr, BLOCK_N: tl.constexpr
):
    """What a weight lacks that was multiplied with its zero point in it: int32 [N, 1]. Bytes lost 128 before."""
    return (128 if BITS == 8 else 0) - _zero(zero_point, block, OFFSET, GROUP_SIZE, BITS, BLOCK_N)


@triton.jit
def _zero(zero_point, block, OFFSET: tl.constexpr, GROUP_SIZE: tl.constexpr, BITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Zero points int32 [N, 1] of a group."""
    if zero_point is None:
        return tl.full((BLOCK_N, 1), 1 << (BITS - 1), tl.int32)
    else:
        return tl.load(zero_point + _index(block, OFFSET, GROUP_SIZE))[:, None].to(tl.int32)


@triton.jit
def _complement(
    zero_point, block, OFFSET: tl.constexpr, GROUP_SIZE: tl.constexpr, BITS: tl.constexpr, BLOCK_N: tl.constexpr
):
    return (128 - _zero(zero_point, block, OFFSET, GROUP_SIZE, BITS, BLOCK_N)).to(tl.int8)


@triton.jit
def _index(block, OFFSET: tl.constexpr, SIZE: tl.constexpr):
    """Which group or span of SIZE codes begins, or goes on, OFFSET codes after the start of a block."""
    if rest_of(SIZE) == 0:
        return block // (SIZE // BLOCK)
    else:
        return block * (BLOCK // SIZE) + OFFSET // SIZE
