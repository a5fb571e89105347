"""Tiles of codes -> words of the packed layout, in registers.

A block of up to 128 codes of b bits is one planar field for each power of two in b (see `planar`). A tile holds the
codes of a block for some rows in the order of its narrowest field:

    [ROWS, GROUPS, PLANES, SIZE]    code (group * PLANES + plane) * RUN + i of each row, for i < RUN <= SIZE

RUN are the words of that field. Triton spreads the last dimension over threads and then the first ones, so that a
thread has all planes of its words, and codes become words without leaving it. A wider field has a multiple of RUN
words: each of its planes is several planes of the tile. Where a field of a short block ends within a word this does not
hold, and each field is packed from a tile of its own. Codes of 8 bits are bytes in their order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .planar import block_words, wider_bits


@triton.constexpr_function
def narrowest(fields):
    """The narrowest of several fields, whose widths are the binary digits of `fields`: 7 is 4, 2 and 1."""
    return fields & -fields


@triton.constexpr_function
def plane_count(count, fields):
    """PLANES of a tile with these fields of a block of `count` codes; for 8 bits it could be any number."""
    return 16 // (fields & -fields) if fields < 8 else (1 if count % 4 else 4)


@triton.constexpr_function
def run_length(count, fields):
    """RUN of such a tile. Codes of 8 bits come in pairs."""
    if fields == 8:
        return count + count % 2 if count % 4 else count // 4
    return -(-count * (fields & -fields) // 16)


@triton.constexpr_function
def fits_one_tile(count, bits):
    """Whether one tile does for all fields of a block of `count` codes."""
    return bits & (bits - 1) == 0 or count * (bits & -bits) % 16 == 0


@triton.jit
def tile_columns(GROUPS: tl.constexpr, PLANES: tl.constexpr, RUN: tl.constexpr, SIZE: tl.constexpr):
    """Numbers of the codes in a tile, int32 [1, GROUPS, PLANES, SIZE], and whether places [1, 1, 1, SIZE] have one."""
    group = tl.arange(0, GROUPS)[None, :, None, None]
    plane = tl.arange(0, PLANES)[None, None, :, None]
    place = tl.arange(0, SIZE)[None, None, None, :]
    return (group * PLANES + plane) * RUN + place, place < RUN


@triton.jit
def store_words(codes, block, inside, COUNT: tl.constexpr, BITS: tl.constexpr, FIELDS: tl.constexpr, RUN: tl.constexpr):
    """Pack a tile of codes int32 (0 where there is none) into FIELDS, some or all of those of BITS below 8.

    block: int16 pointers [ROWS] to the words of a block of COUNT codes. inside: [ROWS], which rows are there.
    """
    for step in tl.static_range(3):
        if FIELDS & (4 >> step):
            field = codes
            if BITS & (BITS - 1):  # there are others
                field = (codes >> wider_bits(BITS, 4 >> step)) & ((1 << (4 >> step)) - 1)
            to = block + block_words(COUNT, wider_bits(BITS, 4 >> step))
            _store_field(field, to, inside, RUN, 4 >> step, (4 >> step) // narrowest(FIELDS))


@triton.jit
def _store_field(field, to, inside, RUN: tl.constexpr, WIDTH: tl.constexpr, RUNS: tl.constexpr):
    """The words of a field, of whose planes each is RUNS of the tile's."""
    PLANES: tl.constexpr = 16 // WIDTH
    ROWS: tl.constexpr = field.shape[0]
    SIZE: tl.constexpr = field.shape[3]
    shifts = (tl.arange(0, PLANES) * WIDTH)[None, :, None, None]
    words = tl.sum(tl.reshape(field, (ROWS, PLANES, RUNS, SIZE)) << shifts, axis=1)
    place = tl.arange(0, SIZE)[None, None, :]
    word = tl.arange(0, RUNS)[None, :, None] * RUN + place
    tl.store(to[:, None, None] + word, words.to(tl.int16), mask=inside[:, None, None] & (place < RUN))


@triton.jit
def store_bytes(codes, block, inside, columns, stored):
    """Store a tile of codes int32 of 8 bits in the row that begins at `block`, those that are `stored`."""
    to = block.to(tl.pointer_type(tl.uint8))[:, None, None, None] + columns
    tl.store(to, codes.to(tl.uint8), mask=stored & inside[:, None, None, None])
