"""What programs of attention read of packed rows: words of a part, numbers of a plane, scales and zero points.

ROWS is a `Rows`, and DTYPE the type of the model, which is that of the scales.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_registers import beside, byte_of_words
from .attention_tiles import block_length, groups, lanes, part_of, part_start, parts, place_of, used_lanes
from .planar import codes_at, row_words
from .rounding import load_float
from .unpack import aligned, byte_bias, nibbles, operand, plane_bias, plane_codes


@triton.constexpr_function
def bias_of_plane(rows, plane, dtype):
    """What the numbers of a plane have too much."""
    if not rows.planar:
        return 0.0
    return byte_bias(dtype) if rows.bits == 8 else plane_bias(place_of(rows, plane), rows.bits, dtype)


@triton.jit
def load_words(row, here, starts, ROWS: tl.constexpr, TURNED: tl.constexpr):
    """The words of each part of rows at addresses [T]: two tuples of tiles, which `plane_numbers` takes apart.

    TURNED: tiles are [lanes, T] and not [T, lanes]. `starts` is what `narrow_starts` returned.
    """
    low, high = (), ()
    for part in tl.static_range(parts(ROWS)):
        lane = tl.arange(0, lanes(ROWS, part))
        if TURNED:
            words = _load_part(row[None, :], lane[:, None], here[None, :], starts[part], ROWS, part)
        else:
            words = _load_part(row[:, None], lane[None, :], here[:, None], starts[part], ROWS, part)
        low, high = low + (words[0],), high + (words[1],)
    return low, high


@triton.constexpr_function
def narrow_fields(rows):
    """Widths of the fields whose words are fewer than lanes: several lanes read each of them."""
    widths = (width for width in (2, 1) if rows.planar and rows.bits > 2 and rows.bits < 8 and rows.bits & width)
    return tuple(width for width in widths if width < (4 if rows.bits > 3 else 2))


@triton.constexpr_function
def narrow_words(rows, part, width):
    """Words of such a field."""
    return used_lanes(rows, part) * width // (4 if rows.bits > 3 else 2)


@triton.jit
def narrow_starts(pointer, never, ROWS: tl.constexpr, TURNED: tl.constexpr):
    """At which bit of its word in a narrow field each lane starts: for each part a tuple of int32 [lanes] by field.

    They come out of loads that never happen. Triton turns words into the layout of tensor cores right after they are
    loaded, which is best, if all that a product depends on is loaded; a range of numbers is not.
    """
    starts = ()
    for part in tl.static_range(parts(ROWS)):
        lane = tl.arange(0, lanes(ROWS, part))
        lane = lane[:, None] if TURNED else lane[None, :]
        some = ()
        for i in tl.static_range(len(narrow_fields(ROWS))):
            start = lane // narrow_words(ROWS, part, narrow_fields(ROWS)[i]) * narrow_fields(ROWS)[i]
            address = pointer.to(tl.pointer_type(tl.int32), bitcast=True) + lane
            some = some + (tl.load(address, (lane < 0) | never, other=start),)
        starts = starts + (some,)
    return starts


# Scales and zero points


@triton.constexpr_function
def halvings(count):
    """How often a tile of so many columns, or a few more, is cut in half until each of them is alone."""
    return (count - 1).bit_length()


@triton.jit
def load_groups(row, here, live, ROWS: tl.constexpr, DTYPE: tl.constexpr):
    """Scales and zero points of rows at addresses [T]: a tuple of float32 [T] of each, with one for each group.

    Where not `live`, scales are 0. Numbers are made where words are loaded, once for each token. Triton would move the
    words to where the products are, and make numbers of them in every thread that needs some; it does not move what
    lies `beside` each other.
    """
    BITS: tl.constexpr = ROWS.bits
    DIM: tl.constexpr = ROWS.dim
    WORDS: tl.constexpr = DTYPE.primitive_bitwidth // 16  # of a scale
    index = tl.minimum(tl.arange(0, 1 << halvings(groups(ROWS))), groups(ROWS) - 1)[None, :]
    word = row[:, None] + row_words(DIM, BITS)
    scale = word + index * WORDS
    # words, not bytes: the narrowest number that is loaded decides in which order Triton has operands
    zero = scale if ROWS.symmetric else word + (groups(ROWS) * WORDS + index // 2)
    byte = 8 * (index % 2)
    scales, zeros = (), ()
    if DTYPE == tl.float32:
        scales = columns(load_float(scale, here[:, None], DTYPE))
        found = columns(beside(tl.zeros(scale.shape, tl.int16), tl.load(zero, here[:, None], other=0), byte))
    else:
        found = columns(beside(tl.load(scale, here[:, None], other=0), tl.load(zero, here[:, None], other=0), byte))
    for i in tl.static_range(groups(ROWS)):
        if DTYPE == tl.bfloat16:
            scales = scales + ((found[i] & -0x10000).to(tl.float32, bitcast=True),)
        if DTYPE == tl.float16:
            scales = scales + ((found[i] >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32),)
        if ROWS.symmetric:
            zeros = zeros + (tl.full(row.shape, 1 << (BITS - 1), tl.float32),)
        else:
            zeros = zeros + ((found[i] & 0xFF).to(tl.float32),)
    shown = ()
    for i in tl.static_range(groups(ROWS)):
        shown = shown + (tl.where(live, scales[i], 0.0),)
    return shown, zeros


@triton.jit
def columns(tile):
    """The columns [T] of a tile [T, a power of two], each by itself: a tuple."""
    TIMES: tl.constexpr = halvings(tile.shape[1])
    found = (tile,)
    for half in tl.static_range(TIMES):
        even, odd = (), ()
        for i in tl.static_range(1 << half):
            pair = tl.split(tl.reshape(found[i], [tile.shape[0], 1 << (TIMES - half - 1), 2]))
            even, odd = even + (pair[0],), odd + (pair[1],)
        found = even + odd
    alone = ()
    for i in tl.static_range(1 << TIMES):
        alone = alone + (tl.reshape(found[i], [tile.shape[0]]),)
    return alone


# Codes


@triton.jit
def _load_part(row, lane, here, starts, ROWS: tl.constexpr, PART: tl.constexpr):
    """Two tiles of words int16; not planar: codes int32, twice."""
    BITS: tl.constexpr = ROWS.bits
    START: tl.constexpr = part_start(ROWS, PART)
    USED: tl.constexpr = used_lanes(ROWS, PART)
    if USED != lanes(ROWS, PART):
        here = here & (lane < USED)
    if ROWS.planar:
        field = row + START * BITS // 16
        low = tl.load(field + lane, here, other=0)
        high = low
        field += USED
        for i in tl.static_range(len(narrow_fields(ROWS))):
            words = tl.load(field + lane % narrow_words(ROWS, PART, narrow_fields(ROWS)[i]), here, other=0)
            words = aligned(words, starts[i])
            if BITS == 3:
                high = nibbles(low, words, 1)
                low = nibbles(low, words, 0)
            elif i == 0:
                high = words
            else:
                high = nibbles(high, words, 0)
            field += narrow_words(ROWS, PART, narrow_fields(ROWS)[i])
        return low, high
    else:
        block = row + START // 128 * (8 * BITS)
        codes = codes_at(block, START % 128 + lane, here & (lane < USED), block_length(ROWS, PART), BITS)
        return codes, codes


@triton.jit
def plane_numbers(low, high, ROWS: tl.constexpr, PLANE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes plus `bias_of_plane` [T, lanes] of a plane, in `operand(DTYPE)`."""
    PART: tl.constexpr = part_of(ROWS, PLANE)
    PLACE: tl.constexpr = place_of(ROWS, PLANE)
    BITS: tl.constexpr = ROWS.bits
    if ROWS.planar:
        if BITS == 8:
            return byte_of_words(low[PART], PLACE, DTYPE)
        else:
            return plane_codes(low[PART], high[PART], PLACE, BITS, DTYPE)
    else:
        return low[PART].to(operand(DTYPE))
