"""What attention does to two 16-bit numbers that share a register, besides `unpack`."""

from __future__ import annotations

import triton
import triton.language as tl

from . import INTERPRETED as _INTERPRETED
from .rounding import rounded
from .unpack import byte_bias, codes, operand

INTERPRETED = tl.constexpr(_INTERPRETED)


@triton.jit
def byte_of_words(words, UPPER: tl.constexpr, DTYPE: tl.constexpr):
    """byte_bias(DTYPE) + the lower or the upper byte of each int16 word, in `operand(DTYPE)`."""
    if INTERPRETED:
        return ((words.to(tl.int32) >> (8 * UPPER)) & 0xFF).to(tl.float32) + byte_bias(DTYPE)
    elif DTYPE == tl.float16:
        return codes(words, 8 * UPPER, 8, DTYPE)
    else:
        asm: tl.constexpr = _byte_to_bf16(UPPER)
        bits = tl.inline_asm_elementwise(asm, "=r,r", [words], dtype=tl.int16, is_pure=True, pack=2)
        return bits.to(DTYPE, bitcast=True)


@triton.constexpr_function
def _byte_to_bf16(UPPER):
    """code - 128 = (128 + the lower seven bits) - (128 if the eighth bit is set, else 256), all exact.

    A register holds two of everything. lop3 takes a truth table: 0xEA is (a & b) | c, 0x6A is (a & b) ^ c.
    """
    return f"""{{
        .reg .b32 byte, number, offset, one;
        shr.b32 byte, $1, {8 * UPPER};
        lop3.b32 number, byte, 0x007F007F, 0x43004300, 0xEA;
        lop3.b32 offset, byte, 0x00800080, 0xC380C380, 0x6A;
        mov.b32 one, 0x3F803F80;
        fma.rn.bf16x2 $0, number, one, offset;
    }}"""


@triton.jit
def rounded_and_back(x, DTYPE: tl.constexpr):
    """x float32 in DTYPE, and that in float32 again: `operand(DTYPE)` and float32."""
    if INTERPRETED or DTYPE != tl.bfloat16:
        once = rounded(x, DTYPE)
        return once.to(operand(DTYPE)), once.to(tl.float32)
    else:  # Triton would round each number by itself, in a slow instruction
        asm: tl.constexpr = _round_and_back()
        bits, back = tl.inline_asm_elementwise(
            asm, "=r,=r,=r,r,r", [x], dtype=(tl.int16, tl.float32), is_pure=True, pack=2
        )
        return bits.to(DTYPE, bitcast=True), back


@triton.constexpr_function
def _round_and_back():
    """Two float32 $3 and $4 to two bfloat16 in $0, and those to two float32 again."""
    return """{
        cvt.rn.bf16x2.f32 $0, $4, $3;
        shl.b32 $1, $0, 16;
        and.b32 $2, $0, 0xFFFF0000;
    }"""


@triton.jit
def beside(upper, lower, shift):
    """int32: the int16 word `upper` in the upper half, in the lower one the byte of the word `lower` at bit `shift`."""
    if INTERPRETED:
        return (upper.to(tl.int32) << 16) | ((lower.to(tl.int32) >> shift) & 0xFF)
    else:  # not an operation that Triton moves: it would move both words by themselves
        asm: tl.constexpr = _beside()
        return tl.inline_asm_elementwise(asm, "=r,h,h,r", [upper, lower, shift], dtype=tl.int32, is_pure=True, pack=1)


@triton.constexpr_function
def _beside():
    return """{
        .reg .b32 high, low;
        cvt.u32.u16 high, $1;
        cvt.u32.u16 low, $2;
        shl.b32 high, high, 16;
        shr.b32 low, low, $3;
        lop3.b32 $0, low, 0x000000FF, high, 0xEA;
    }"""
