"""The kernels of weights.py: a tile of the product of tokens in 16-bit floats with packed weights.

    y[t, o] = bias[o] + sum over groups G of scale[o, G] * sum over i in G of x[t, i] (code[o, i] - zero[o, G])

Weights are the first factor, which tensor cores read from registers, where unpacking leaves it. So a tile is
[outputs, tokens], and few tokens cost little. Codes arrive with a bias (see unpack.py), which leaves them together with
the zero point. That is done in one of three ways:

    FOLDED      sum x (bias + code) - sum x bias - zero sum x. Tensor cores have time for the other two sums, since they
                are the same for all outputs. The fewest instructions, for up to 8 tokens.
    SUBTRACTED  code - zero, exact in 16 bits, is what is multiplied.
    SCALED      (code - zero) scale, rounded to 16 bits, is: no sum of a group has to leave the tensor cores. For many
                tokens.

FOLDED multiplies plane by plane, with the tensor cores' instructions that all GPUs have. The others put the planes of a
group side by side and multiply once, since those of Hopper have to be waited for.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .planar import BLOCK, codes_at, row_words
from .rounding import rounded
from .unpack import byte_codes, eighths, load_block, operand, plane_bias, plane_codes, planes
from .weights_groups import ONCE, scale_of, zero_of

FOLDED, SUBTRACTED, SCALED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_REST = tl.constexpr(32)  # codes of the short last block that are multiplied at once


@triton.jit(do_not_specialize=["tokens"])
def product(
    y,
    x,
    words,
    scale,
    zero_point,
    bias,
    tokens,
    outputs,
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
    """One tile of y [tokens, outputs], or of y float32 [SPLITS, tokens, outputs], whose sum is without bias.

    GROUP_SIZE: 32, 64 or a multiple of 128. Program (tile, split) takes its share of the blocks of the tile's rows.
    READ: see weights_groups.py.
    """
    product_tile(
        *(y, x, words, scale, zero_point, bias, tl.program_id(0), tokens, outputs, x_stride),
        *(LENGTH, BITS, GROUP_SIZE, WAY, READ, AT_ONCE, BLOCK_N, BLOCK_M, SPLITS, WARPS, STAGES),
    )


@triton.jit
def product_tile(
    y,
    x,
    words,
    scale,
    zero_point,
    bias,
    program,
    tokens,
    outputs,
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
    """Tile number `program` of a weight."""
    split = tl.program_id(1)
    tiles_m = tl.cdiv(tokens, BLOCK_M)  # programs side by side share their weights
    token = (program % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    row = program // tiles_m * BLOCK_N + tl.arange(0, BLOCK_N)
    row_read = tl.minimum(row, outputs - 1).to(tl.int64)  # beyond the last row that one is read, and not stored
    total = tile(
        *(x + token[None, :] * x_stride, words, scale, zero_point, row_read, (token < tokens)[None, :], split, tokens),
        *(LENGTH, BITS, GROUP_SIZE, WAY, READ, AT_ONCE, BLOCK_N, BLOCK_M, SPLITS, WARPS, STAGES),
    )
    if SPLITS == 1:
        if bias is not None:
            total += tl.load(bias + row_read).to(tl.float32)[:, None]
    store_tile(y, total, token, row, token < tokens, split, tokens, outputs, SPLITS)


@triton.jit
def tile(
    x,
    words,
    scale,
    zero_point,
    row,
    there,
    split,
    tokens,
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
    """Products float32 [N, M] of a split of the rows int64 [N] of a weight and of the tokens at x [1, M].

    there [1, M]: which tokens there are; the others are not read. `tokens` is positive: how many there are in all.
    """
    GROUPS: tl.constexpr = (LENGTH + GROUP_SIZE - 1) // GROUP_SIZE
    BLOCKS: tl.constexpr = LENGTH // BLOCK
    REST: tl.constexpr = LENGTH - BLOCKS * BLOCK
    STEPS: tl.constexpr = (BLOCKS + AT_ONCE * SPLITS - 1) // (AT_ONCE * SPLITS)
    # Loaded tiles are laid out as tensor cores want them, computed ones are not, nor is what is made of both. So the
    # compiler is told that these numbers may come from memory.
    shifts = eighths(BITS)
    shifts = tl.load(words.to(tl.pointer_type(tl.int32)) + 0 * shifts, tokens < 0, other=shifts)
    words += row[:, None] * row_words(LENGTH, BITS)
    start = row * GROUPS
    scales, zeros = scale, zero_point
    if READ == ONCE:
        scales = tl.load(scale + start)[:, None]
        if zero_point is not None:
            zeros = tl.load(zero_point + start)[:, None]

    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in tl.range(STEPS, num_stages=STAGES):
        first = (split * STEPS + step) * AT_ONCE
        read = first
        if SPLITS * STEPS * AT_ONCE > BLOCKS:
            read = tl.minimum(first, BLOCKS - AT_ONCE)
        for i in tl.static_range(AT_ONCE):
            seen = there
            if SPLITS * STEPS * AT_ONCE > BLOCKS:  # those that are read a second time are multiplied with zeros
                seen = there & (read + i >= first)
            total = _add_block(
                *(total, x, words, shifts, scales, zeros, start, read, i, seen),
                *(BITS, GROUP_SIZE, WAY, READ, AT_ONCE, WARPS),
            )
    if REST:
        last = split == SPLITS - 1
        if last:
            total = _add_rest(total, x, words, scale, zero_point, start, there, LENGTH, BITS, GROUP_SIZE)
    return total


@triton.jit
def store_tile(y, total, token, row, there, split, tokens, outputs, SPLITS: tl.constexpr):
    """total [N, M] to rows `row` [N] of the tokens int64 [M] that are `there`: to y, or to the split's part of it."""
    places = token[None, :] * outputs + row[:, None]
    stored = there[None, :] & (row < outputs)[:, None]
    if SPLITS == 1:
        tl.store(y + places, rounded(total, y.dtype.element_ty), stored)
    else:
        tl.store(y + split.to(tl.int64) * tokens * outputs + places, total, stored)


@triton.jit
def _add_block(
    total,
    x,
    words,
    shifts,
    scale,
    zero_point,
    start,
    first,
    PLACE: tl.constexpr,
    seen,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    WAY: tl.constexpr,
    READ: tl.constexpr,
    AT_ONCE: tl.constexpr,
    WARPS: tl.constexpr,
):
    """total [N, M] plus the product of one block of the rows at words [N, 1] and of the tokens at x [1, M].

    It is number PLACE of the AT_ONCE blocks of a step, of which `first` is the first. seen [1, M]: for which tokens it
    counts.
    """
    GROUPS: tl.constexpr = 1 if GROUP_SIZE >= BLOCK else BLOCK // GROUP_SIZE  # in the block
    COUNT: tl.constexpr = AT_ONCE * GROUPS
    SPAN: tl.constexpr = BLOCK // GROUPS
    PLANES: tl.constexpr = planes(BITS) // GROUPS  # of a group
    OPERAND: tl.constexpr = operand(x.dtype.element_ty)
    x += (first + PLACE) * BLOCK
    words += (first + PLACE) * (8 * BITS)
    if BITS == 8:
        low = words.to(tl.pointer_type(tl.uint8)) + tl.arange(0, BLOCK // planes(BITS))[None, :]
        high = low
    else:
        low, high = load_block(words, shifts, BITS, "evict_first")
    for i in tl.static_range(GROUPS):
        if GROUP_SIZE > BLOCK:
            s = scale_of(scale, start, (first + PLACE) // (GROUP_SIZE // BLOCK), 0, 1, READ)
        else:
            s = scale_of(scale, start, first * GROUPS, PLACE * GROUPS + i, COUNT, READ)
        if zero_point is None:
            zero = tl.full((1, 1), 2 ** (BITS - 1), tl.int32)  # the center
        elif GROUP_SIZE > BLOCK:
            zero = zero_of(zero_point, start, (first + PLACE) // (GROUP_SIZE // BLOCK), 0, 1, READ)
        else:
            zero = zero_of(zero_point, start, first * GROUPS, PLACE * GROUPS + i, COUNT, READ)
        if WAY == FOLDED:
            part = _folded(x, low, high, zero, seen, i * PLANES, PLANES, BITS, total.shape[0], WARPS)
            total += part * s.to(tl.float32)
        else:
            w = _subtracted(low, high, zero.to(OPERAND), i * PLANES, PLANES, BITS, x.dtype.element_ty)
            x_span = tl.load(x + i * SPAN + tl.arange(0, SPAN)[:, None], seen, other=0).to(OPERAND)
            if WAY == SUBTRACTED:
                total += tl.dot(w, x_span) * s.to(tl.float32)
            else:
                total = tl.dot(_scaled(w, s, OPERAND), x_span, total)
    return total


@triton.jit
def _folded(
    x,
    low,
    high,
    zero,
    seen,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
):
    """sum x (code - zero) over COUNT planes of a block, [N, M]."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    OPERAND: tl.constexpr = operand(DTYPE)
    WIDTH: tl.constexpr = BLOCK // planes(BITS)
    SHARED: tl.constexpr = min(ROWS, 16 * WARPS)  # outputs for which each warp has a row of its own
    part = tl.zeros((ROWS, seen.shape[1]), tl.float32)
    minus_biases = tl.zeros((SHARED, seen.shape[1]), tl.float32)
    sums = tl.zeros((SHARED, seen.shape[1]), tl.float32)
    for plane in tl.static_range(FIRST, FIRST + COUNT):
        x_plane = tl.load(x + plane * WIDTH + tl.arange(0, WIDTH)[:, None], seen, other=0).to(OPERAND)
        part = tl.dot(_plane(low, high, plane, BITS, DTYPE), x_plane, part)
        minus_bias = tl.full((SHARED, WIDTH), -plane_bias(plane, BITS, DTYPE), OPERAND)
        minus_biases = tl.dot(minus_bias, x_plane, minus_biases)
        sums = tl.dot(tl.full((SHARED, WIDTH), 1, OPERAND), x_plane, sums)
    return part + _repeated(minus_biases, ROWS) - zero.to(tl.float32) * _repeated(sums, ROWS)


@triton.jit
def _repeated(tile, ROWS: tl.constexpr):
    """[N, M] as often as it takes to be [ROWS, M]: a matter of names, the registers stay where they are."""
    if tile.shape[0] == ROWS:
        return tile
    else:
        twice = tl.reshape(tl.permute(tl.join(tile, tile), (2, 0, 1)), (2 * tile.shape[0], tile.shape[1]))
        return _repeated(twice, ROWS)


@triton.jit
def _subtracted(low, high, zero, FIRST: tl.constexpr, COUNT: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """code - zero of COUNT planes of a block side by side, [N, K]: these too are where they were."""
    if COUNT == 1:
        minus_bias = tl.full((1, 1), -plane_bias(FIRST, BITS, DTYPE), operand(DTYPE))
        return _plane(low, high, FIRST, BITS, DTYPE) + (minus_bias - zero)
    else:
        a = _subtracted(low, high, zero, FIRST, COUNT // 2, BITS, DTYPE)
        b = _subtracted(low, high, zero, FIRST + COUNT // 2, COUNT // 2, BITS, DTYPE)
        return tl.reshape(tl.permute(tl.join(a, b), (0, 2, 1)), (a.shape[0], 2 * a.shape[1]))


@triton.jit
def _plane(low, high, PLANE: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of a plane, with their bias. For 8 bits, `low` points to the bytes of the first one."""
    if BITS == 8:
        WIDTH: tl.constexpr = BLOCK // planes(BITS)
        return byte_codes(tl.load(low + PLANE * WIDTH, eviction_policy="evict_first"), DTYPE)
    else:
        return plane_codes(low, high, PLANE, BITS, DTYPE)


@triton.jit
def _add_rest(
    total,
    x,
    words,
    scale,
    zero_point,
    start,
    there,
    LENGTH: tl.constexpr,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
):
    """As `_add_block`, for the short last block of rows of LENGTH codes, whose planes are shorter: code by code."""
    REST: tl.constexpr = LENGTH - LENGTH // BLOCK * BLOCK
    OPERAND: tl.constexpr = operand(x.dtype.element_ty)
    words += (LENGTH - REST) // 16 * BITS
    for first in tl.static_range(0, REST, _REST):
        i = first + tl.arange(0, _REST)
        group = (LENGTH - REST + first) // GROUP_SIZE
        exists = tl.broadcast_to((i < REST)[None, :], (total.shape[0], _REST))
        codes = codes_at(words, i[None, :], exists, REST, BITS)
        if zero_point is None:
            codes -= 2 ** (BITS - 1)
        else:
            codes -= tl.load(zero_point + start + group).to(tl.int32)[:, None]
        x_part = tl.load(x + (LENGTH - REST) + i[:, None], there & (i < REST)[:, None], other=0).to(OPERAND)
        part = tl.dot(codes.to(tl.float32).to(OPERAND), x_part)
        total += part * tl.load(scale + start + group).to(tl.float32)[:, None]
    return total


@triton.jit
def _scaled(w, s, OPERAND: tl.constexpr):
    """w times the scale, rounded once: in the type of w where the scale has it."""
    if s.dtype == w.dtype:
        return w * s
    else:
        return (w.to(tl.float32) * s.to(tl.float32)).to(OPERAND)


@triton.jit
def add_splits(y, parts, bias, count, outputs, SPLITS: tl.constexpr, SIZE: tl.constexpr):
    """y [count] = the sum of parts float32 [SPLITS, count] in their order, plus bias [outputs]."""
    add_up(y, parts, bias, tl.program_id(0), count, outputs, SPLITS, SIZE)


@triton.jit
def add_up(y, parts, bias, program, count, outputs, SPLITS: tl.constexpr, SIZE: tl.constexpr):
    """SIZE numbers of y, from number SIZE * program on."""
    place = program.to(tl.int64) * SIZE + tl.arange(0, SIZE)
    there = place < count
    total = tl.load(parts + place, there, other=0)
    for _ in tl.static_range(1, SPLITS):
        parts += count
        total += tl.load(parts + place, there, other=0)
    if bias is not None:
        total += tl.load(bias + place % outputs, there, other=0).to(tl.float32)
    tl.store(y + place, rounded(total, y.dtype.element_ty), there)
