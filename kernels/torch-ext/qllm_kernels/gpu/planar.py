"""Where the codes of a packed row lie, and how to read any of them, in blocks of any length.

    block of n codes of b bits = one field for each power of two in b, widest first
    field of width p           = ceil(n p / 16) words; word i holds codes i, i + words, i + 2 words, ..., p bits each
    8 bits                     = the codes as bytes, in their order

All blocks have 128 codes but the last of a row, which has the rest.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = tl.constexpr(128)


@triton.constexpr_function
def rest_of(length):
    """Codes of a short last block, 0 without one."""
    return length % 128


@triton.constexpr_function
def in_blocks(length):
    """A length rounded up to whole blocks."""
    return -(-length // 128) * 128


@triton.constexpr_function
def field_words(count, width):
    """Words of a field of `width` bits over `count` codes."""
    return -(-count * width // 16)


@triton.constexpr_function
def wider_bits(bits, width):
    """Bits of a code that lie in wider fields than that of `width`: where its own bits go."""
    return bits - bits % (2 * width)


@triton.constexpr_function
def block_words(count, bits):
    """Words of a block of `count` codes."""
    return sum(-(-count * width // 16) for width in (8, 4, 2, 1) if bits & width)


@triton.constexpr_function
def row_words(length, bits):
    """Words of a row of `length` codes."""
    rest = length % 128
    return length // 128 * 8 * bits + sum(-(-rest * width // 16) for width in (8, 4, 2, 1) if bits & width)


@triton.jit
def codes_at(block, place, mask, COUNT: tl.constexpr, BITS: tl.constexpr):
    """Codes int32 [R, S] at places [1, S] of blocks of COUNT codes, whose words begin at the addresses block [R, 1]."""
    if BITS == 8:
        return tl.load(block.to(tl.pointer_type(tl.uint8)) + place, mask, other=0).to(tl.int32)
    else:
        codes = tl.zeros(mask.shape, tl.int32)
        for step in tl.static_range(3):
            if BITS & (4 >> step):
                field = block + block_words(COUNT, wider_bits(BITS, 4 >> step))
                codes |= _field_at(field, place, mask, COUNT, 4 >> step) << wider_bits(BITS, 4 >> step)
        return codes


@triton.jit
def _field_at(field, place, mask, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    words = tl.load(field + place % field_words(COUNT, WIDTH), mask, other=0).to(tl.int32)
    return (words >> (place // field_words(COUNT, WIDTH) * WIDTH)) & ((1 << WIDTH) - 1)
