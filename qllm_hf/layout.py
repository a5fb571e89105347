"""How many 16-bit words a row of packed codes takes: the arithmetic of the layout, without torch.

A row of codes is cut into blocks of 128 (the last one may be shorter). A block of n codes of b bits
is stored as one *planar field* for each power of two in b, widest first: 3 bits are a 2-bit field
and a 1-bit field, 6 bits are 4 + 2, 7 bits are 4 + 2 + 1. A field of width p packs 16/p codes into a
word, and code number `j * words + i` sits in bits `p*j .. p*j + p - 1` of word i: plane j of the
words is the j-th contiguous part of the block.

    4 bits, block of 128 codes, 32 words
                        bits 0-3     bits 4-7     bits 8-11    bits 12-15
        word 0          code 0       code 32      code 64      code 96
        word 1          code 1       code 33      code 65      code 97
        ...
        word 31         code 31      code 63      code 95      code 127

    3 bits, block of 128 codes: 16 words of the low 2 bits, then 8 words of the high bit
        word 0          codes 0, 16, 32, 48, 64, 80, 96, 112   (bits 0-1 of each)
        ...
        word 16         codes 0, 8, 16, 24, ... 120            (bit 2 of each)

    8 bits: the codes themselves in their order, two bytes to a word, low byte first

Why planar: every plane has the same shape as the words, so unpacking is a shift and a mask without
any permutation, two codes share one 32-bit register in a GPU kernel, and a plane never crosses a
quantization group whose size is a multiple of 32. Why blocks: a row can be cut at any multiple of
128 codes (tensor parallelism) and each part is itself a packed row.
"""

from __future__ import annotations

BLOCK = 128
WORD_BITS = 16

# The planar fields of each bit-width, widest (lowest bits of the code) first.
FIELDS: dict[int, tuple[int, ...]] = {
    2: (2,),
    3: (2, 1),
    4: (4,),
    5: (4, 1),
    6: (4, 2),
    7: (4, 2, 1),
    8: (8,),
}


def field_words(length: int, width: int) -> int:
    """Words of one planar field of `width` bits over `length` codes."""
    return -(-length * width // WORD_BITS)


def row_words(length: int, bits: int) -> int:
    """16-bit words that a packed row of `length` codes of `bits` bits takes.

    >>> row_words(4096, 3) * 16 / 4096    # dense: 3 bits cost 3 bits
    3.0
    >>> row_words(1, 4)                   # the smallest row is one word
    1
    """
    blocks, rest = divmod(length, BLOCK)
    return blocks * BLOCK * bits // WORD_BITS + sum(field_words(rest, width) for width in FIELDS[bits])


def group_count(length: int, group_size: int) -> int:
    """Groups in a row of `length` elements; the last one may be short. One for per-row (-1) and per-tensor (0)."""
    return -(-length // group_size) if group_size > 0 else 1
