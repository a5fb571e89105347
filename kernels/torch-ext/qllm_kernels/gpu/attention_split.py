"""Attention of a few queries over one stretch of packed keys and values: maxima, sums and weighted values.

A program has the queries of one key head as columns and goes through its tokens a tile at a time, past those that one
mask hides from all of them:

    scores  [T, M]     = sum of s_k (numbers of keys [T, lanes] x queries [lanes, M] - (bias + z_k) sum of queries)
    weights [T, M]     = 2^(scores - maximum); for each group of values once more, times s_v and rounded
    values  [lanes, M] += numbers of values, turned [lanes, T] x weights of their group
    centers [M]        += (bias + z_v) x weights of each group, which is subtracted in the end

Numbers are codes with the bias that unpacking leaves on them: nothing is subtracted from them or multiplied with them.
Keys and values are the first operand of every product, since the second can be as narrow as 8 columns, and decoding has
few queries. Sums are kept for each thread by itself until the end, and only maxima are taken across threads.

Source: FlashDecoding (Dao et al. 2023) for the stretches; section 3.2 of Lin et al., QServe (arXiv 2405.04532), for
zero points after the product.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import INTERPRETED as _INTERPRETED
from .attention_products import few_rows, load_queries, score, store_values, weigh
from .attention_rows import load_groups, load_words, narrow_starts
from .attention_tiles import groups, lanes, part_of, planes

LOG2E = tl.constexpr(1.4426950408889634)


@triton.constexpr_function
def power_of_two(count):
    """The smallest one that is not less."""
    return 1 << (count - 1).bit_length()


if _INTERPRETED:

    @triton.constexpr_function
    def bound(x):
        """A bound of a loop as a number: the interpreter has arrays, which Python's range does not take."""
        return int(x.handle.data.item())
else:

    @triton.jit
    def bound(x):
        return x


@triton.jit
def load_mask(addresses, there):
    """What a mask adds to scores in units of log 2: numbers, or -infinity where a flag (a byte) is not set."""
    if addresses.dtype.element_ty == tl.uint8:
        # by words: the narrowest number that is loaded decides in which order Triton has the operands of products
        place = addresses.to(tl.int64)
        words = tl.load((place & -2).to(tl.pointer_type(tl.int16)), there, other=0).to(tl.int32)
        return tl.where(((words >> ((place & 1) * 8).to(tl.int32)) & 0xFF) != 0, 0.0, float("-inf"))
    else:
        return tl.load(addresses, there, other=0).to(tl.float32) * LOG2E


@triton.jit
def attend_stretch(
    query,
    keys,
    values,
    mask,
    tokens,
    partial_values,
    partial_maxima,
    partial_sums,
    capacity,
    heads,
    group,
    count,
    query_batch,
    query_head,
    query_position,
    key_batch,
    key_head,
    value_batch,
    value_head,
    mask_batch,
    mask_head,
    mask_position,
    mask_token,
    tokens_batch,
    window,
    scale,
    softcap,
    KEYS: tl.constexpr,
    KEY_STRIDE: tl.constexpr,
    VALUES: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    DTYPE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SHARED: tl.constexpr,
    SHORT: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Program (batch and key head, stretch, tile of queries) writes partial results of `group * count` queries.

    partial_values float32 [B H group count, SPLITS, dim of values], the others float32 [B H group count, SPLITS]. One
    without tokens, or one of which nothing is seen, has the sum 0, and no values.
    """
    pair, split, columns = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = (pair // heads).to(tl.int64), pair % heads
    column = columns * BLOCK_M + tl.arange(0, BLOCK_M)
    seen = column < group * count
    place = (pair.to(tl.int64) * (group * count) + column) * SPLITS + split

    # the tokens that any of the queries sees, and the stretch of them that is this program's
    last = capacity
    if tokens is not None:
        last = tl.minimum(tl.load(tokens + batch * tokens_batch).to(tl.int32), capacity)
    position = column % count
    if not CAUSAL:
        position += last - count  # the queries are the last of the tokens
    first = 0
    if WINDOW:
        first = tl.maximum((0 if CAUSAL else last - count) - window + 1, 0) // BLOCK_T * BLOCK_T
    if CAUSAL:
        last = tl.minimum(last, count)
    length = (tl.maximum(last - first, 0) + SPLITS * BLOCK_T - 1) // (SPLITS * BLOCK_T) * BLOCK_T
    start = first + split * length
    stop = tl.minimum(start + length, last)
    if start >= stop:
        tl.store(partial_maxima + place, float("-inf"), seen)
        tl.store(partial_sums + place, 0.0, seen)
        return

    head_of_query = head * group + column // count
    query_rows = query + batch * query_batch + head_of_query.to(tl.int64) * query_head
    query_rows += (column % count).to(tl.int64) * query_position
    queries, sums, biases = load_queries(query_rows, seen, KEYS, DTYPE)
    keys += batch * key_batch + head.to(tl.int64) * key_head
    values += batch * value_batch + head.to(tl.int64) * value_head
    if mask is not None:
        mask += batch * mask_batch
        if SHARED:
            mask += (head * group).to(tl.int64) * mask_head
        else:
            mask += head_of_query.to(tl.int64) * mask_head + (column % count).to(tl.int64) * mask_position

    weighted, ones, centers, ranges = (), (), (), ()
    for plane in tl.static_range(planes(VALUES)):
        weighted = weighted + (tl.zeros([lanes(VALUES, part_of(VALUES, plane)), BLOCK_M], tl.float32),)
    for _ in tl.static_range(groups(VALUES)):
        ones = ones + (tl.zeros([16, BLOCK_M], tl.float32),)
        centers = centers + (tl.zeros([WARPS, 8, BLOCK_M], tl.float32),)
        ranges = ranges + (scale * 0,)
    past = (weighted, ones, centers, ranges)
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sum = tl.zeros([WARPS, 8, BLOCK_M], tl.float32)
    key_rows = keys + tl.arange(0, BLOCK_T) * KEY_STRIDE
    value_rows = values + tl.arange(0, BLOCK_T) * VALUE_STRIDE
    never = capacity < 0
    key_starts = narrow_starts(keys, never, KEYS, False)
    value_starts = narrow_starts(values, never, VALUES, True)
    factor = scale if SOFTCAP else scale * LOG2E

    for at in tl.range(bound(start), bound(stop), BLOCK_T):
        # the last tile is as long as the others, and hides what it shares with the one before
        begin = tl.maximum(tl.minimum(at, stop - BLOCK_T), 0)
        token = begin + tl.arange(0, BLOCK_T)
        live = (token >= at) & (token < stop)
        here = live if SHORT else tl.full([BLOCK_T], True, tl.int1)
        hidden = tl.where(live, 0.0, float("-inf"))
        shown = True  # nothing is read of a tile that is hidden from all: of a static cache, most of it
        if mask is not None and SHARED:
            hidden += load_mask(mask + token * mask_token, live)
            shown = tl.max(hidden, 0) > float("-inf")
        if shown:
            key_row, value_row = key_rows + begin * KEY_STRIDE, value_rows + begin * VALUE_STRIDE
            key_words = load_words(key_row, here, key_starts, KEYS, False)
            key_scales, key_zeros = load_groups(key_row, here, live, KEYS, DTYPE)
            value_words = load_words(value_row, here, value_starts, VALUES, True)
            value_scales, value_zeros = load_groups(value_row, here, live, VALUES, DTYPE)
            start_at = tl.zeros([BLOCK_T], tl.float32) if SOFTCAP else hidden
            scores = score(key_words, key_scales, key_zeros, factor, start_at, queries, sums, biases, KEYS, DTYPE)
            if SOFTCAP:
                scores = (softcap * LOG2E) * (1 - 2 / (1 + tl.exp2(scores * (2 * LOG2E / softcap)))) + hidden[:, None]
            if CAUSAL:
                scores = tl.where(token[:, None] <= position[None, :], scores, float("-inf"))
            if WINDOW:
                scores = tl.where(token[:, None] > position[None, :] - window, scores, float("-inf"))
            if mask is not None and not SHARED:
                scores += load_mask(mask[None, :] + token[:, None] * mask_token, live[:, None] & seen[None, :])

            highest = tl.maximum(maximum, tl.max(scores, 0))
            shift = tl.where(highest > float("-inf"), highest, 0.0)
            weights = tl.exp2(scores - shift[None, :])
            kept = tl.exp2(maximum - shift)
            sum = sum * kept[None, None, :] + few_rows(weights, WARPS)
            maximum = highest
            past = weigh(value_words, value_scales, value_zeros, weights, kept, past, VALUES, DTYPE, WARPS)

    tl.store(partial_maxima + place, maximum, seen)
    tl.store(partial_sums + place, tl.sum(tl.sum(sum, 0), 0), seen)
    store_values(partial_values + place * VALUES.dim, seen, past, VALUES, DTYPE)
