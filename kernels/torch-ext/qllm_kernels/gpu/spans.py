"""Quantize and pack a span of some rows: whole groups and, but for the end of a row, whole blocks.

Where each group of a span is a number of whole planes of one block, all its numbers are in registers at once and read
once. Elsewhere the ranges of the groups are found first, and the blocks are read again (from the cache, mostly).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .pack import fits_one_tile, plane_count, run_length, store_bytes, store_words, tile_columns
from .quantize import codes, parameters, range_bits


@triton.constexpr_function
def power(n):
    """The power of two that is not below n."""
    return 1 << (n - 1).bit_length()


@triton.constexpr_function
def groups_of(length, group):
    """Groups of a span or a row."""
    return -(-length // group)


@triton.constexpr_function
def span_length(length, group):
    """Numbers of a span: the fewest that end with a block and a group, or the whole row."""
    if length > 128 and 128 % group == 0:
        return 128
    return group if group % 128 == 0 and length > group else length


@triton.constexpr_function
def reads_once(length, group, bits):
    """Whether each group of a span is a number of whole planes of one tile."""
    if bits == 8:
        return length % 2 == 0 and -(-length // group) * power(group) <= 256
    if length > 128 or not fits_one_tile(length, bits):
        return False
    run, planes = run_length(length, bits), plane_count(length, bits)
    return group >= length or (length == run * planes and length % group == 0 and group % run == 0)


@triton.constexpr_function
def rows_at_once(length, group, bits):
    """Rows of a program of one warp: each thread reads 8 numbers of each plane at a time, or fewer of one row."""
    block = min(span_length(length, group), 128)
    run = -(-block // 4) if bits == 8 else run_length(block, bits)
    return min(32, max(1, 256 // power(run)))


@triton.constexpr_function
def range_step(group, groups, rows):
    """Numbers of each group that a program reads at a time to find its range: 16 a thread."""
    return max(1, min(power(group), 512 // (groups * rows)))


@triton.jit
def _load(x, inside, columns, real, WHOLE: tl.constexpr):
    """Float32 [ROWS, ..]: numbers at the columns of rows that begin at x, 0 where none is."""
    mask = inside[:, None, None, None]
    if not WHOLE:
        mask = mask & real
    return tl.load(x[:, None, None, None] + columns, mask=mask, other=0).to(tl.float32)


@triton.jit
def _over_groups(values):
    """Maxima [ROWS, GROUPS] of [ROWS, GROUPS, .., ..]."""
    return tl.max(tl.max(values, axis=2), axis=2)


@triton.jit
def _ranges(
    x,
    inside,
    LENGTH: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    ROWS: tl.constexpr,
):
    """What `range_bits` gives, over each group: two of [ROWS, GROUPS]."""
    STEP: tl.constexpr = range_step(GROUP, GROUPS, ROWS)
    WHOLE: tl.constexpr = GROUPS * GROUP == LENGTH and GROUP % STEP == 0
    lowest, highest = tl.zeros((ROWS, GROUPS, 1, STEP), tl.uint32), tl.zeros((ROWS, GROUPS, 1, STEP), tl.int32)
    start = tl.arange(0, GROUPS)[None, :, None, None] * GROUP
    for at in range(0, GROUP, STEP):
        place = at + tl.arange(0, STEP)[None, None, None, :]
        column = start + place
        low, high = range_bits(_load(x, inside, column, (place < GROUP) & (column < LENGTH), WHOLE), SYMMETRIC)
        highest = tl.maximum(highest, high)
        if not SYMMETRIC:
            lowest = tl.maximum(lowest, low)
    return _over_groups(lowest), _over_groups(highest)


@triton.jit
def _store_parameters(
    bits, zero, scales, zeros, inside, COUNT: tl.constexpr, GROUPS: tl.constexpr, SYMMETRIC: tl.constexpr
):
    """Scales and zero points [ROWS, GROUPS] of COUNT groups; scales: int16 pointers [ROWS], zeros: uint8 pointers."""
    group = tl.arange(0, GROUPS)[None, :]
    mask = inside[:, None] & (group < COUNT)
    if bits.dtype == tl.int32:  # float32, which need not begin at a multiple of its size
        tl.store(scales[:, None] + 2 * group, bits.to(tl.int16), mask=mask)
        tl.store(scales[:, None] + 2 * group + 1, (bits >> 16).to(tl.int16), mask=mask)
    else:
        tl.store(scales[:, None] + group, bits, mask=mask)
    if not SYMMETRIC:
        tl.store(zeros[:, None] + group, zero.to(tl.uint8), mask=mask)


@triton.jit
def _of_group(values, group, FIRST: tl.constexpr, STOP: tl.constexpr):
    """Of values [ROWS, GROUPS] that of each element's group, which is one of FIRST .. STOP - 1."""
    number = tl.arange(0, values.shape[1])[None, :]
    found = tl.sum(tl.where(number == FIRST, values, 0), axis=1)[:, None, None, None]
    for each in tl.static_range(FIRST + 1, STOP):
        other = tl.sum(tl.where(number == each, values, 0), axis=1)[:, None, None, None]
        found = tl.where(group >= each, other, found)
    return found


@triton.jit
def _store_tile(
    numbers,
    scaling,
    block,
    inside,
    columns,
    in_run,
    COUNT: tl.constexpr,
    BITS: tl.constexpr,
    FIELDS: tl.constexpr,
    RUN: tl.constexpr,
    PRODUCT: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """FIELDS of the codes of a tile, in shapes that broadcast, into the block of COUNT codes."""
    divisor, zero, first, last = scaling
    found = codes(numbers, divisor, zero, first, last, PRODUCT)
    if not WHOLE:
        found = tl.where(in_run & (columns < COUNT), found, 0)
    if BITS == 8:
        store_bytes(found, block, inside, columns, in_run & (columns < COUNT + COUNT % 2))
    else:
        store_words(found, block, inside, COUNT, BITS, FIELDS, RUN)


@triton.jit
def _encode_at_once(
    x,
    words,
    scales,
    zeros,
    inside,
    LENGTH: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    SCALE: tl.constexpr,
    PRODUCT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A span of which one tile has everything."""
    COUNT: tl.constexpr = groups_of(LENGTH, GROUP)
    GROUPS: tl.constexpr = power(COUNT)
    BYTES: tl.constexpr = BITS == 8 and GROUPS > 1
    PLANES: tl.constexpr = 1 if BYTES else plane_count(LENGTH, BITS) // GROUPS
    RUN: tl.constexpr = GROUP if BYTES else run_length(LENGTH, BITS)
    WHOLE: tl.constexpr = GROUPS * PLANES * power(RUN) == LENGTH
    columns, in_run = tile_columns(GROUPS, PLANES, RUN, power(RUN))
    numbers = _load(x, inside, columns, in_run & (columns < LENGTH), WHOLE)
    low, high = range_bits(numbers, SYMMETRIC)
    highest = _over_groups(high)
    lowest = highest if SYMMETRIC else _over_groups(low)
    bits, divisor, zero, first, last = parameters(lowest, highest, BITS, SYMMETRIC, SCALE, PRODUCT)
    _store_parameters(bits, zero, scales, zeros, inside, COUNT, GROUPS, SYMMETRIC)
    scaling = (divisor[:, :, None, None], zero[:, :, None, None], first[:, :, None, None], last[:, :, None, None])
    _store_tile(numbers, scaling, words, inside, columns, in_run, LENGTH, BITS, BITS, RUN, PRODUCT, WHOLE)


@triton.jit
def _encode_block(
    x,
    scaling,
    block,
    inside,
    START: tl.constexpr,
    COUNT: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    FIELDS: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """FIELDS of the block of COUNT codes that begins at x, number START of its span; scaling: [ROWS, GROUPS] each."""
    PLANES: tl.constexpr = plane_count(COUNT, FIELDS)
    RUN: tl.constexpr = run_length(COUNT, FIELDS)
    WHOLE: tl.constexpr = PLANES * power(RUN) == COUNT
    columns, in_run = tile_columns(1, PLANES, RUN, power(RUN))
    numbers = _load(x, inside, columns, in_run & (columns < COUNT), WHOLE)
    divisor, zero, first, last = scaling
    if divisor.shape[1] == 1:
        here = (divisor[:, :, None, None], zero[:, :, None, None], first[:, :, None, None], last[:, :, None, None])
    else:
        FIRST: tl.constexpr = START // GROUP
        STOP: tl.constexpr = groups_of(START + COUNT, GROUP)
        group = (START + columns) // GROUP
        divisor, zero = _of_group(divisor, group, FIRST, STOP), _of_group(zero, group, FIRST, STOP)
        here = (divisor, zero, _of_group(first, group, FIRST, STOP), _of_group(last, group, FIRST, STOP))
    _store_tile(numbers, here, block, inside, columns, in_run, COUNT, BITS, FIELDS, RUN, PRODUCT, WHOLE)


@triton.jit
def _encode_fields(
    x,
    scaling,
    block,
    inside,
    START: tl.constexpr,
    COUNT: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """As `_encode_block`, all fields: from one tile or from one each."""
    if fits_one_tile(COUNT, BITS):
        _encode_block(x, scaling, block, inside, START, COUNT, GROUP, BITS, BITS, PRODUCT)
    else:
        for step in tl.static_range(3):
            if BITS & (4 >> step):
                _encode_block(x, scaling, block, inside, START, COUNT, GROUP, BITS, 4 >> step, PRODUCT)


@triton.jit
def _encode_in_two_passes(
    x,
    words,
    scales,
    zeros,
    inside,
    LENGTH: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    SCALE: tl.constexpr,
    PRODUCT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Any span: ranges first, then block after block."""
    COUNT: tl.constexpr = groups_of(LENGTH, GROUP)
    GROUPS: tl.constexpr = power(COUNT)
    REST: tl.constexpr = LENGTH % 128
    lowest, highest = _ranges(x, inside, LENGTH, GROUP, GROUPS, SYMMETRIC, ROWS)
    bits, divisor, zero, first, last = parameters(lowest, highest, BITS, SYMMETRIC, SCALE, PRODUCT)
    _store_parameters(bits, zero, scales, zeros, inside, COUNT, GROUPS, SYMMETRIC)
    scaling = (divisor, zero, first, last)
    if GROUPS == 1:
        for start in range(0, LENGTH - REST, 128):
            _encode_fields(x + start, scaling, words + start // 16 * BITS, inside, 0, 128, GROUP, BITS, PRODUCT)
    else:
        for block in tl.static_range(LENGTH // 128):
            to = words + block * 8 * BITS
            _encode_fields(x + block * 128, scaling, to, inside, block * 128, 128, GROUP, BITS, PRODUCT)
    if REST > 0:
        START: tl.constexpr = LENGTH - REST
        _encode_fields(x + START, scaling, words + START // 16 * BITS, inside, START, REST, GROUP, BITS, PRODUCT)


@triton.jit
def _encode_span(
    x,
    words,
    scales,
    zeros,
    inside,
    LENGTH: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    SCALE: tl.constexpr,
    PRODUCT: tl.constexpr,
    ROWS: tl.constexpr,
):
    if reads_once(LENGTH, GROUP, BITS):
        _encode_at_once(x, words, scales, zeros, inside, LENGTH, GROUP, BITS, SYMMETRIC, SCALE, PRODUCT, ROWS)
    else:
        _encode_in_two_passes(x, words, scales, zeros, inside, LENGTH, GROUP, BITS, SYMMETRIC, SCALE, PRODUCT, ROWS)


@triton.jit
def encode_part(
    x,
    words,
    scales,
    zeros,
    inside,
    span,
    LENGTH: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Quantize and pack the span with that number of rows of LENGTH numbers, in groups of GROUP or fewer.

    x, words (int16), scales (int16, words of the type SCALE), zeros (uint8): pointers [ROWS] to where each row begins.
    inside: [ROWS], which rows are there.
    """
    SPAN: tl.constexpr = span_length(LENGTH, GROUP)
    WORDS: tl.constexpr = SCALE.primitive_bitwidth // 16
    PRODUCT: tl.constexpr = SCALE.primitive_bitwidth == 16 and x.dtype.element_ty.primitive_bitwidth == 16
    if LENGTH > SPAN:
        x, words = x + span * SPAN, words + span * (SPAN // 16 * BITS)
        scales, zeros = scales + span * (SPAN // GROUP * WORDS), zeros + span * (SPAN // GROUP)
    if LENGTH % SPAN == 0:
        _encode_span(x, words, scales, zeros, inside, SPAN, GROUP, BITS, SYMMETRIC, SCALE, PRODUCT, ROWS)
    elif span == LENGTH // SPAN:
        _encode_span(x, words, scales, zeros, inside, LENGTH % SPAN, GROUP, BITS, SYMMETRIC, SCALE, PRODUCT, ROWS)
    else:
        _encode_span(x, words, scales, zeros, inside, SPAN, GROUP, BITS, SYMMETRIC, SCALE, PRODUCT, ROWS)
