"""Packed words to int8 in registers: codes less their zero points, as tensor cores for integers take them.

    1. Each field of a block becomes tiles of int8, four bytes to a register, one for each plane. Four words lie in two
       registers: a permutation brings their low bytes into one register, another their high bytes, and a shift and a
       mask cut the codes of a plane out of all four at once.
    2. Planes are joined to tiles of 32 codes and more. That costs nothing, it only names registers: in the layout of
       the tensor cores, elements that are 16 or more apart lie in the same thread.
    3. The fields of a code and 128 - zero point are added, in all four bytes at once. The sum is from 1 to 255, so no
       byte carries into the next. Its highest bit is flipped, which subtracts 128.

A field of 1 bit has planes of 8 codes, which lie in other threads. Its words are loaded into the left and the right
half of two tiles, and the right one is shifted: that makes planes of 16 codes, two bits apart, as those of 2 bits are.
(A shift that differs from column to column would do, too, but keeps Triton from loading words to where they are
needed.)

There is no inline assembly in Triton's interpreter. There, the same functions do the same arithmetic on every code.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import INTERPRETED as _INTERPRETED

INTERPRETED = tl.constexpr(_INTERPRETED)

# Assembly for NVIDIA GPUs: a register holds two words or four bytes.
_BYTES = tl.constexpr("xor.b32 $0, $1, 0x80808080;")
_SIGNED = tl.constexpr("{ .reg .b32 t; add.u32 t, $1, $2; xor.b32 $0, t, 0x80808080; }")
_SIGNED_SUM = tl.constexpr("{ .reg .b32 t; add.u32 t, $1, $2; add.u32 t, t, $3; xor.b32 $0, t, 0x80808080; }")
_BIT_FIELD = tl.constexpr("{ .reg .b32 t; shr.b32 t, $2, 1; or.b32 $0, $1, t; }")


@triton.jit
def int8_block(words, complements, BITS: tl.constexpr):
    """Blocks of codes of 2 to 7 bits, less zero points: four tiles int8 [N, 32], in the order of their codes.

    Words begin at the addresses words [N, 1]. complements are four int8 [N, 1]: 128 - zero point, of every 32 codes.
    """
    lower, upper = _fields(words, BITS)
    return (
        _signed(lower[0], upper[0], complements[0], BITS > 4),
        _signed(lower[1], upper[1], complements[1], BITS > 4),
        _signed(lower[2], upper[2], complements[2], BITS > 4),
        _signed(lower[3], upper[3], complements[3], BITS > 4),
    )


@triton.jit
def codes_block(words, BITS: tl.constexpr):
    """As `int8_block`, with zero points still in the codes."""
    lower, upper = _fields(words, BITS)
    if BITS > 4:
        return lower[0] | upper[0], lower[1] | upper[1], lower[2] | upper[2], lower[3] | upper[3]
    else:
        return lower


@triton.jit
def _fields(words, BITS: tl.constexpr):
    """The up to four lower bits of codes and those above, in four tiles int8 [N, 32] each."""
    if BITS < 4:
        lower = _narrow_field(words, BITS, 0)
        upper = lower
    else:
        lower = _wide_field(words)
        upper = lower
        if BITS > 4:
            upper = _narrow_field(words + 32, BITS - 4, 4)
    return lower, upper


@triton.jit
def joined(parts, PARTS: tl.constexpr):
    """Four tiles [N, 32] as 1, 2 or 4 tiles [N, 128 / PARTS], in their order."""
    if PARTS == 4:
        return parts
    elif PARTS == 2:
        return _beside(parts[0], parts[1]), _beside(parts[2], parts[3])
    else:
        return (_beside(_beside(parts[0], parts[1]), _beside(parts[2], parts[3])),)


@triton.jit
def int8_bytes(data):
    """Codes of 8 bits less 128: int8 of the bytes int8 [N, S]."""
    if INTERPRETED:
        return data ^ -128
    else:
        return tl.inline_asm_elementwise(_BYTES, "=r,r", [data], dtype=tl.int8, is_pure=True, pack=4)


@triton.jit
def _beside(a, b):
    return tl.reshape(tl.permute(tl.join(a, b), (0, 2, 1)), (a.shape[0], 2 * a.shape[1]))


@triton.jit
def _wide_field(words):
    """A field of 4 bits: four planes int8 [N, 32]."""
    words = tl.load(words + tl.arange(0, 32)[None, :])
    if INTERPRETED:
        return _plane(words, 0, 15), _plane(words, 4, 15), _plane(words, 8, 15), _plane(words, 12, 15)
    else:
        asm: tl.constexpr = _wide_asm()
        return tl.inline_asm_elementwise(
            asm, "=r,=r,=r,=r,r,r", [words], dtype=(tl.int8, tl.int8, tl.int8, tl.int8), is_pure=True, pack=4
        )


@triton.jit
def _narrow_field(words, BITS: tl.constexpr, AT: tl.constexpr):
    """Fields of 1, 2, or 2 and 1 bits: four tiles int8 [N, 32], of two planes each, of codes shifted left by AT."""
    column = tl.arange(0, 16)[None, :]
    if BITS == 1:
        two = _bit_field(words, column)
        one = two
    else:
        two = tl.load(words + column)
        one = two
        if BITS == 3:
            one = _bit_field(words + 16, column)
    if INTERPRETED:
        p = (
            _narrow_plane(two, one, 0, BITS, AT),
            _narrow_plane(two, one, 2, BITS, AT),
            _narrow_plane(two, one, 4, BITS, AT),
            _narrow_plane(two, one, 6, BITS, AT),
            _narrow_plane(two, one, 8, BITS, AT),
            _narrow_plane(two, one, 10, BITS, AT),
            _narrow_plane(two, one, 12, BITS, AT),
            _narrow_plane(two, one, 14, BITS, AT),
        )
    else:
        asm: tl.constexpr = _narrow_asm(BITS, AT)
        p = tl.inline_asm_elementwise(
            asm,
            "=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r",
            [two, one],
            dtype=(tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8),
            is_pure=True,
            pack=4,
        )
    return _beside(p[0], p[1]), _beside(p[2], p[3]), _beside(p[4], p[5]), _beside(p[6], p[7])


@triton.jit
def _bit_field(words, column):
    """Words int16 [N, 16] in which bit 2 j belongs to code 16 j + column; the other bits are undefined."""
    left = tl.load(words + column % 8, column < 8, other=0)
    right = tl.load(words + column % 8, column >= 8, other=0)
    if INTERPRETED:
        return left | (right >> 1)
    else:
        return tl.inline_asm_elementwise(_BIT_FIELD, "=r,r,r", [left, right], dtype=tl.int16, is_pure=True, pack=2)


@triton.jit
def _signed(lower, upper, complement, TWO: tl.constexpr):
    """lower + upper + complement - 128 for bytes; without TWO there is no upper."""
    if INTERPRETED:
        total = lower.to(tl.int32) + (complement.to(tl.int32) & 255) - 128
        return (total + upper.to(tl.int32) if TWO else total).to(tl.int8)
    elif TWO:
        return tl.inline_asm_elementwise(
            _SIGNED_SUM, "=r,r,r,r", [lower, upper, complement], dtype=tl.int8, is_pure=True, pack=4
        )
    else:
        return tl.inline_asm_elementwise(_SIGNED, "=r,r,r", [lower, complement], dtype=tl.int8, is_pure=True, pack=4)


@triton.jit
def _plane(words, SHIFT: tl.constexpr, MASK: tl.constexpr):
    return ((words.to(tl.int32) >> SHIFT) & MASK).to(tl.int8)


@triton.jit
def _narrow_plane(two, one, SHIFT: tl.constexpr, BITS: tl.constexpr, AT: tl.constexpr):
    if BITS == 1:
        return _plane(one, SHIFT, 1) << AT
    elif BITS == 2:
        return _plane(two, SHIFT, 3) << AT
    else:
        return (_plane(two, SHIFT, 3) | (_plane(one, SHIFT, 1) << 2)) << AT


# Assembly of fields. prmt 0x6420 takes the low bytes of four words in two registers, 0x7531 the high ones.


@triton.constexpr_function
def _wide_asm():
    lines = [".reg .b32 four;"]
    for half, selector in enumerate(("0x6420", "0x7531")):
        lines += [
            f"prmt.b32 four, $4, $5, {selector};",
            f"and.b32 ${2 * half}, four, 0x0F0F0F0F;",
            "shr.b32 four, four, 4;",
            f"and.b32 ${2 * half + 1}, four, 0x0F0F0F0F;",
        ]
    return "{ " + " ".join(lines) + " }"


@triton.constexpr_function
def _narrow_asm(BITS, AT):
    """$8-$9 are four words with planes of 2 (or 1) bits, $10-$11 those of the third bit. Planes are two bits apart.

    For 3 bits, planes move apart to four bits first, the even ones in one register and the odd ones in another.
    lop3 0xE4 takes bits of the first operand where the third is set, and of the second elsewhere.
    """
    mask = f"{0x01010101 * (((1 << BITS) - 1) << AT):#010x}"
    lines = [".reg .b32 two, one, even, odd, four;"]
    for half, selector in enumerate(("0x6420", "0x7531")):
        lines.append(f"prmt.b32 two, $8, $9, {selector};")
        if BITS == 3:
            lines += [
                f"prmt.b32 one, $10, $11, {selector};",
                "shl.b32 four, one, 2;",
                "lop3.b32 even, two, four, 0x33333333, 0xE4;",
                "shr.b32 four, two, 2;",
                "lop3.b32 odd, four, one, 0x33333333, 0xE4;",
            ]
        for plane in range(4):
            source, at = (("even", "odd")[plane % 2], plane // 2 * 4) if BITS == 3 else ("two", 2 * plane)
            shift = f"shr.b32 four, {source}, {at - AT};" if at >= AT else f"shl.b32 four, {source}, {AT - at};"
            lines += [shift, f"and.b32 ${4 * half + plane}, four, {mask};"]
    return "{ " + " ".join(lines) + " }"
