"""What a program of attention does with a tile of keys and one of values; see attention_split.py.

Everything here is unrolled over the planes of a row. ROWS is a `Rows`, M queries are columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_registers import rounded_and_back
from .attention_rows import bias_of_plane, plane_numbers
from .attention_tiles import (
    closes_group,
    first_code,
    group_of,
    lanes,
    opens_group,
    part_of,
    planes,
    step,
    used_lanes,
)
from .unpack import operand

HEADROOM = tl.constexpr(16384.0)
"""The largest weight in float16: well below its largest number, and far above its smallest."""


# Queries


@triton.jit
def codes_of_plane(ROWS: tl.constexpr, PLANE: tl.constexpr):
    """Which code each lane of a plane is, and whether it is there: two vectors [lanes]."""
    lane = tl.arange(0, lanes(ROWS, part_of(ROWS, PLANE)))
    code = first_code(ROWS, PLANE) + lane * step(ROWS)
    return code, (lane < used_lanes(ROWS, part_of(ROWS, PLANE))) & (code < ROWS.dim)


@triton.jit
def load_queries(rows, seen, ROWS: tl.constexpr, DTYPE: tl.constexpr):
    """Queries as the planes of keys take them: `operand(DTYPE)` [lanes, M] each; rows are their addresses [M].

    And two sums float32 [M] over each group of keys: of queries, and of queries times the bias of their plane.
    """
    queries, sums, biases = (), (), ()
    total = tl.zeros(seen.shape, tl.float32)
    biased = total
    for plane in tl.static_range(planes(ROWS)):
        code, there = codes_of_plane(ROWS, plane)
        x = tl.load(rows[None, :] + code[:, None], there[:, None] & seen[None, :], other=0.0).to(operand(DTYPE))
        queries = queries + (x,)
        if seen.shape[0] == 8:
            # by a product, for which queries are laid out as for all others: Triton would do that again for each tile
            every = tl.full([16, code.shape[0]], 1, operand(DTYPE))
            some = tl.max(tl.dot(every, x, input_precision="ieee"), 0)
        else:  # more of them do not fit in registers
            some = tl.sum(x.to(tl.float32), 0)
        total += some
        biased += some * bias_of_plane(ROWS, plane, DTYPE)
        if closes_group(ROWS, plane):
            sums, biases = sums + (total,), biases + (biased,)
            total = tl.zeros(seen.shape, tl.float32)
            biased = total
    return queries, sums, biases


# Tiles of keys and values


@triton.jit
def score(words, scales, zeros, factor, start, queries, sums, biases, ROWS: tl.constexpr, DTYPE: tl.constexpr):
    """`start` float32 [T] plus the products [T, M] of a tile of keys and the queries."""
    low, high = words
    scores = tl.broadcast_to(start[:, None], [start.shape[0], sums[0].shape[0]])
    for plane in tl.static_range(planes(ROWS)):
        if opens_group(ROWS, plane):
            product = tl.broadcast_to(-biases[group_of(ROWS, plane)][None, :], scores.shape)
        numbers = plane_numbers(low, high, ROWS, plane, DTYPE)
        product = tl.dot(numbers, queries[plane], product, input_precision="ieee")
        if closes_group(ROWS, plane):
            scale, zero = scales[group_of(ROWS, plane)] * factor, zeros[group_of(ROWS, plane)]
            scores += scale[:, None] * (product - zero[:, None] * sums[group_of(ROWS, plane)][None, :])
    return scores


@triton.jit
def few_rows(x, WARPS: tl.constexpr):
    """Sums float32 [WARPS, 8, M] of rows of x [T, M], of those that a thread has itself."""
    spread = tl.reshape(x, [x.shape[0] // (16 * WARPS), WARPS, 2, 8, x.shape[1]])
    return tl.sum(tl.sum(spread, 2), 0)


@triton.constexpr_function
def biases_differ(rows, index, dtype):
    """Whether the planes of a group have several biases."""
    return (
        len({bias_of_plane(rows, plane, dtype) for plane in range(planes(rows)) if group_of(rows, plane) == index}) > 1
    )


@triton.jit
def weigh(words, scales, zeros, weights, kept, past, ROWS: tl.constexpr, DTYPE: tl.constexpr, WARPS: tl.constexpr):
    """What there is of values, with those of a tile, turned, which have the weights float32 [T, M].

    `past` is four tuples, of which `kept` [M] stays: sums of weighted numbers [lanes, M] of each plane; and of each
    group, sums of weights [16, M] if its planes have different biases, sums of weighted zero points (and the bias), and
    the range. float16 has too few exponents for weights times scales: there they are relative to the range of a group,
    which is the largest scale so far.
    """
    low, high = words
    values, ones, centers, ranges = past
    next_values, next_ones, next_centers, next_ranges = (), (), (), ()
    for plane in tl.static_range(planes(ROWS)):
        if opens_group(ROWS, plane):
            scale, largest, left = scales[group_of(ROWS, plane)], ranges[group_of(ROWS, plane)], kept
            if DTYPE == tl.float16:
                largest = tl.maximum(largest, tl.max(scale, 0))
                inverse = tl.where(largest > 0, 1 / largest, 0.0)
                left = kept * (ranges[group_of(ROWS, plane)] * inverse)
                scale *= inverse * HEADROOM
            factors, again = rounded_and_back(weights * scale[:, None], DTYPE)
            zero, one = zeros[group_of(ROWS, plane)], ones[group_of(ROWS, plane)]
            if biases_differ(ROWS, group_of(ROWS, plane), DTYPE):
                every = tl.full([16, weights.shape[0]], 1, operand(DTYPE))
                one = tl.dot(every, factors, one * left[None, :], input_precision="ieee")
            else:
                zero += bias_of_plane(ROWS, plane, DTYPE)
            center = few_rows(again * zero[:, None], WARPS)
            center += centers[group_of(ROWS, plane)] * left[None, None, :]
            next_ones, next_centers = next_ones + (one,), next_centers + (center,)
            next_ranges = next_ranges + (largest,)
        numbers = plane_numbers(low, high, ROWS, plane, DTYPE)
        value = values[plane] * left[None, :]
        next_values = next_values + (tl.dot(numbers, factors, value, input_precision="ieee"),)
    return next_values, next_ones, next_centers, next_ranges


@triton.jit
def store_values(rows, seen, past, ROWS: tl.constexpr, DTYPE: tl.constexpr):
    """Values of all planes, less their bias and zero points, to rows float32 at addresses [M]."""
    values, ones, centers, ranges = past
    for plane in tl.static_range(planes(ROWS)):
        center = tl.sum(tl.sum(centers[group_of(ROWS, plane)], 0), 0)
        if biases_differ(ROWS, group_of(ROWS, plane), DTYPE):
            center += tl.max(ones[group_of(ROWS, plane)], 0) * bias_of_plane(ROWS, plane, DTYPE)
        value = values[plane] - center[None, :]
        if DTYPE == tl.float16:
            value *= ranges[group_of(ROWS, plane)] / HEADROOM
        code, there = codes_of_plane(ROWS, plane)
        tl.store(rows[None, :] + code[:, None], value, there[:, None] & seen[None, :])
