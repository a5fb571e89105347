"""Packed words to codes in registers, without a conversion from integer to float.

A word of 16 bits holds one code of each plane of its field. Two words share a 32-bit register, so that a shift and one
`lop3` cut the codes of a plane out of both, and put each into the mantissa of a float whose exponent is fixed:

    bits of a float16   0 11001 000000cccc   = 1024 + code        (`bias` 1024)
    bits of a bfloat16  0 10000110 000cccc   =  128 + code        (`bias`  128)

A code may lie higher in the mantissa, AT bits from its lower end, under an exponent that is as much lower: the value is
then 2^-AT bias + code. So planes that lie side by side in a word need one shift for all of them, or none. Nobody
subtracts the bias from each code. It goes where the zero point goes: sum(w x) = s (sum(m x) - (bias + zero) sum(x)).

There is no inline assembly in Triton's interpreter. There, the same functions do the same arithmetic in float32.

The layout is that of `qllm_hf.layout`: blocks of 128 codes; a field of p bits is 8p words; plane j of word i is code
8pj + i; 3 bits are a field of 2 and one of 1, 5 to 7 bits are one of 4 and the rest; 8 bits are bytes in their order.

Source of the magic numbers: Kim et al., Who Says Elephants Can't Run (arXiv 2211.10017), section 3.3.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import INTERPRETED as _INTERPRETED

INTERPRETED = tl.constexpr(_INTERPRETED)


@triton.constexpr_function
def planes(BITS):
    """Planes of a block: tiles of 16 codes for 2 and 3 bits, of 32 for the others."""
    return 8 if BITS < 4 else 4


@triton.constexpr_function
def operand(DTYPE):
    """The dtype in which codes arrive: DTYPE, or float32 in the interpreter, whose bfloat16 cannot be multiplied."""
    return tl.float32 if _INTERPRETED else DTYPE


# Floats with a code in their mantissa


@triton.constexpr_function
def bias(DTYPE, AT=0):
    """What has to be subtracted from a float whose code lies at bit AT of the mantissa."""
    return 2.0 ** (_mantissa(DTYPE) - AT)


@triton.constexpr_function
def _mantissa(DTYPE):
    return {"fp16": 10, "bf16": 7}[DTYPE.name]


@triton.constexpr_function
def _magic(DTYPE, AT):
    """Bits of `bias(DTYPE, AT)` as a float of DTYPE, which is a power of two: an exponent and an empty mantissa."""
    exponent_bias = {"fp16": 15, "bf16": 127}[DTYPE.name]
    return (exponent_bias + _mantissa(DTYPE) - AT) << _mantissa(DTYPE)


@triton.jit
def codes(words, SHIFT: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr, AT: tl.constexpr = 0):
    """bias(DTYPE, AT) + ((word >> SHIFT) & (2^WIDTH - 1)) for each int16 word, in `operand(DTYPE)`."""
    if INTERPRETED:
        return (_field(words, SHIFT, WIDTH) + bias(DTYPE, AT)).to(tl.float32)
    else:
        asm: tl.constexpr = _codes_asm(SHIFT, WIDTH, DTYPE, AT)
        bits = tl.inline_asm_elementwise(asm, "=r,r", [words], dtype=tl.int16, is_pure=True, pack=2)
        return bits.to(DTYPE, bitcast=True)


@triton.jit
def joined(low, high, SHIFT: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr, AT: tl.constexpr = 0):
    """bias(DTYPE, AT) + codes of 4 + WIDTH bits: the lower four at bit SHIFT of `low`, the rest at that of `high`."""
    if INTERPRETED:
        return (_field(low, SHIFT, 4) + 16 * _field(high, SHIFT, WIDTH) + bias(DTYPE, AT)).to(tl.float32)
    else:
        asm: tl.constexpr = _joined_asm(SHIFT, WIDTH, DTYPE, AT)
        bits = tl.inline_asm_elementwise(asm, "=r,r,r", [low, high], dtype=tl.int16, is_pure=True, pack=2)
        return bits.to(DTYPE, bitcast=True)


# Words made of words, where a code is spread over several fields


@triton.jit
def aligned(words, by):
    """Each word shifted right by its own number of bits `by`, the same for both words of a register; int16.

    The upper bits are then undefined.
    """
    if INTERPRETED:
        return ((words.to(tl.int32) & 0xFFFF) >> by).to(tl.int16)
    else:
        asm: tl.constexpr = "shr.b32 $0, $1, $2;"
        return tl.inline_asm_elementwise(asm, "=r,r,r,r", [words, by], dtype=tl.int16, is_pure=True, pack=2)


@triton.jit
def nibbles(two, one, ODD: tl.constexpr):
    """Codes of 3 bits, four to a word at bits 0, 4, 8 and 12, from fields of 2 bits and of 1: int16.

    Every fourth bit is undefined. ODD = 0 takes bits 0, 4, 8, 12 of both fields, and ODD = 1 bits 2, 6, 10, 14.
    """
    if INTERPRETED:
        low = (two.to(tl.int32) & 0xFFFF) >> (2 * ODD)
        high = (one.to(tl.int32) & 0xFFFF) << (2 - 2 * ODD)
        return ((low & 0x3333) | (high & 0xCCCC)).to(tl.int16)
    else:
        asm: tl.constexpr = _nibbles_asm(ODD)
        return tl.inline_asm_elementwise(asm, "=r,r,r", [two, one], dtype=tl.int16, is_pure=True, pack=2)


# Whole blocks


@triton.jit
def eighths(BITS: tl.constexpr):
    """By how many bits the words of a field of 1 bit are shifted to suit a tile of words: int32 [1, 16 or 32]."""
    return tl.arange(0, 128 // planes(BITS))[None, :] // 8


@triton.jit
def load_block(words, shifts, BITS: tl.constexpr, EVICT: tl.constexpr = ""):
    """The words of a block of each row: pointers [.., 1] to the first word -> (low, high), two tiles [.., 16 or 32].

    shifts: `eighths(BITS)`. `plane_codes` takes the words apart. Not for 8 bits, whose codes are bytes.
    """
    i = tl.arange(0, 128 // planes(BITS))[None, :]
    low = tl.load(words + i, eviction_policy=EVICT)
    high = low
    if BITS == 3:
        one = aligned(tl.load(words + 16 + i % 8, eviction_policy=EVICT), shifts)
        high = nibbles(low, one, 1)
        low = nibbles(low, one, 0)
    if BITS == 5:
        high = aligned(tl.load(words + 32 + i % 8, eviction_policy=EVICT), shifts)
    if BITS >= 6:
        high = aligned(tl.load(words + 32 + i % 16, eviction_policy=EVICT), shifts & 2)
    if BITS == 7:
        high = nibbles(high, aligned(tl.load(words + 48 + i % 8, eviction_policy=EVICT), shifts), 0)
    return low, high


@triton.jit
def plane_codes(low, high, PLANE: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of one plane of a block that `load_block` returned, plus `plane_bias` of it: [.., 16 or 32]."""
    if BITS == 2:
        return codes(low, 2 * PLANE, 2, DTYPE, place(PLANE, BITS, DTYPE))
    elif BITS == 3:
        return codes(high if PLANE % 2 else low, 4 * (PLANE // 2), 3, DTYPE, place(PLANE, BITS, DTYPE))
    elif BITS == 4:
        return codes(low, 4 * PLANE, 4, DTYPE, place(PLANE, BITS, DTYPE))
    else:
        return joined(low, high, 4 * PLANE, BITS - 4, DTYPE, place(PLANE, BITS, DTYPE))


@triton.constexpr_function
def place(PLANE, BITS, DTYPE):
    """The bit of the mantissa for the codes of a plane: such that planes share shifts, and the bias stays small."""
    if BITS == 2:  # three planes to a shift
        return 2 * (PLANE % 3) + (4 if DTYPE.name == "fp16" else 0)
    if BITS == 3:  # two planes of each of the two words to a shift
        return 4 * (PLANE // 2 % 2) + (3 if DTYPE.name == "fp16" else 0)
    if BITS == 4:  # in float16, the second plane needs no shift
        return 4 if DTYPE.name == "fp16" else 0
    return _mantissa(DTYPE) - 7


@triton.constexpr_function
def plane_bias(PLANE, BITS, DTYPE):
    """The bias of `plane_codes`, and for 8 bits that of `byte_codes`."""
    if BITS == 8:
        return byte_bias(DTYPE)
    return bias(DTYPE, place(PLANE, BITS, DTYPE))


@triton.jit
def byte_codes(values, DTYPE: tl.constexpr):
    """Codes of 8 bits, plus `byte_bias`: uint8 -> `operand(DTYPE)`."""
    if INTERPRETED:
        return values.to(tl.float32) + byte_bias(DTYPE)
    else:
        asm: tl.constexpr = _bytes_asm(DTYPE)
        bits = tl.inline_asm_elementwise(asm, "=r,r", [values], dtype=tl.int16, is_pure=True, pack=2)
        return bits.to(DTYPE, bitcast=True)


@triton.constexpr_function
def byte_bias(DTYPE):
    """The bias of `byte_codes`: 8 bits do not fit the mantissa of a bfloat16, but -128 .. 127 are exact in it."""
    return {"fp16": 1024.0, "bf16": -128.0}[DTYPE.name]


@triton.jit
def _field(words, SHIFT: tl.constexpr, WIDTH: tl.constexpr):
    return (words.to(tl.int32) >> SHIFT) & ((1 << WIDTH) - 1)


# Assembly for NVIDIA GPUs. A register holds two words, so masks and magic numbers stand in both of its halves.
# lop3 takes a truth table: 0xEA is (a & b) | c, 0x6A is (a & b) ^ c, 0xE4 is bits of a where c is set, of b elsewhere.


@triton.constexpr_function
def _in_both_halves(bits):
    return f"{bits * 0x10001:#010x}"


@triton.constexpr_function
def _shift_right(target, source, by):
    if by == 0:
        return f"mov.b32 {target}, {source};"
    return f"shr.b32 {target}, {source}, {by};" if by > 0 else f"shl.b32 {target}, {source}, {-by};"


@triton.constexpr_function
def _codes_asm(SHIFT, WIDTH, DTYPE, AT):
    mask = _in_both_halves(((1 << WIDTH) - 1) << AT)
    return f"""{{
        .reg .b32 t;
        {_shift_right("t", "$1", SHIFT - AT)}
        lop3.b32 $0, t, {mask}, {_in_both_halves(_magic(DTYPE, AT))}, 0xEA;
    }}"""


@triton.constexpr_function
def _joined_asm(SHIFT, WIDTH, DTYPE, AT):
    return f"""{{
        .reg .b32 low, high;
        {_shift_right("low", "$1", SHIFT - AT)}
        {_shift_right("high", "$2", SHIFT - AT - 4)}
        lop3.b32 low, low, high, {_in_both_halves(0x000F << AT)}, 0xE4;
        lop3.b32 $0, low, {_in_both_halves(((16 << WIDTH) - 1) << AT)}, {_in_both_halves(_magic(DTYPE, AT))}, 0xEA;
    }}"""


@triton.constexpr_function
def _nibbles_asm(ODD):
    return f"""{{
        .reg .b32 low, high;
        {_shift_right("low", "$1", 2 * ODD)}
        {_shift_right("high", "$2", 2 * ODD - 2)}
        lop3.b32 $0, low, high, {_in_both_halves(0x3333)}, 0xE4;
    }}"""


@triton.constexpr_function
def _bytes_asm(DTYPE):
    """Two bytes of the lower half become two words, each under a byte of zeros or of the magic number.

    In bfloat16, code - 128 = (128 + lower seven bits) - (128 if the upper bit is set, else 256), all exact.
    """
    if DTYPE.name == "fp16":
        return "prmt.b32 $0, $1, 0x64646464, 0x4140;"
    return f"""{{
        .reg .b32 word, number, offset, one;
        prmt.b32 word, $1, 0, 0x4140;
        lop3.b32 number, word, {_in_both_halves(0x007F)}, {_in_both_halves(0x4300)}, 0xEA;
        lop3.b32 offset, word, {_in_both_halves(0x0080)}, {_in_both_halves(0xC380)}, 0x6A;
        mov.b32 one, {_in_both_halves(0x3F80)};
        fma.rn.bf16x2 $0, number, one, offset;
    }}"""
