"""Numbers -> codes, in registers: uniform quantization of groups, with the bits that torch gives on a CPU.

    asymmetric  scale = max(high - low, 1e-5) / (2^b - 1)      with low <= 0 <= high
                zero  = -round(low / scale)
    symmetric   scale = max(|x|, 1e-5) / (2^(b-1) - 1)
                zero  = 2^(b-1)
    both        code  = round(x / scale) + zero, kept in 0 .. 2^b - 1

All of it in float32, half to even; a scale is rounded to the type in which it is stored before it is used. Scales in
float16 have a further limit: no code is used that means more than the largest float16.

Three things are not as they would be written first:

- Ranges are found among the bits of the numbers. As integers, positive floats are in their order and negative ones,
  unsigned, in that of their magnitudes. A number that is not finite comes out on top, where the maximum of floats would
  drop it on a GPU.
- Rounding is the addition of 1.5 * 2^23, where floats are the integers: the low bits of the sum are the code.
- Where x and scale have 16 bits each, no division is needed. With significands below 2^11, x / scale is half-way
  between two integers or at least 2^-12 away from that. The product with the inverse is less than 2^-13 away from the
  quotient (which stays below 2^9), so rounding it to a multiple of 2^-12, by adding 3072, brings every half-way case
  back and moves nothing across one. This holds with and without a fused multiply-add.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rounding import rounded


@triton.jit
def range_bits(x, SYMMETRIC: tl.constexpr):
    """Two integer tiles for float32 x, whose maxima over a group are the ends of its range, for `parameters`."""
    bits = x.to(tl.int32, bitcast=True)
    if SYMMETRIC:
        bits = bits & 0x7FFFFFFF
    return bits.to(tl.uint32, bitcast=True), bits


@triton.jit
def nearest(x):
    """The integer nearest to float32 x, half to even; |x| < 2^22."""
    return (x + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000


@triton.jit
def stored_scale(scale, SCALE: tl.constexpr):
    """A float32 scale rounded to the type SCALE: its bits (int16 or int32), and its value as float32."""
    stored = rounded(scale, SCALE)
    bits = stored.to(tl.int32 if SCALE.is_fp32() else tl.int16, bitcast=True)
    return bits, stored.to(tl.float32)


@triton.jit
def parameters(
    lowest,
    highest,
    BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    SCALE: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """What is stored and what is computed with, for groups of which `range_bits` gave the maxima.

    Returns: bits of the scale, then what `codes` takes: divisor (float32), zero point, first and last code
    (int32). Where a scale is not finite, because a number is not or the range overflows, first and last code are the
    zero point: zero times that scale is not a number, so nothing that was lost looks found.
    """
    TOP: tl.constexpr = (1 << BITS) - 1
    if SYMMETRIC:
        extent = highest.to(tl.float32, bitcast=True)
        STEPS: tl.constexpr = (1 << (BITS - 1)) - 1
    else:
        low = tl.minimum(lowest.to(tl.int32, bitcast=True), 0).to(tl.float32, bitcast=True)
        high = tl.maximum(highest, 0).to(tl.float32, bitcast=True)
        extent = high - low
        STEPS: tl.constexpr = TOP
    extent = tl.where(extent < 1e-5, 1e-5, extent)
    bits, scale = stored_scale(tl.div_rn(extent, tl.full(extent.shape, STEPS, tl.float32)), SCALE)
    finite = (scale.to(tl.int32, bitcast=True) & 0x7F800000) != 0x7F800000
    if SYMMETRIC:
        zero = tl.full(extent.shape, 1 << (BITS - 1), tl.int32)
    else:
        zero = tl.where(finite, tl.minimum(nearest(tl.div_rn(-low, scale)), TOP), 0)
    first, last = tl.zeros_like(zero), tl.full(extent.shape, TOP, tl.int32)
    inverse = tl.div_rn(tl.full(extent.shape, 1.0, tl.float32), scale)
    if SCALE.is_fp16():
        reach = tl.minimum(tl.floor(tl.where(finite, inverse, 0.0) * 65504.0), 1024.0).to(tl.int32)
        first, last = tl.maximum(zero - reach, first), tl.minimum(zero + reach, last)
    first, last = tl.where(finite, first, zero), tl.where(finite, last, zero)
    return bits, inverse if PRODUCT else scale, zero, first, last


@triton.jit
def codes(x, divisor, zero, first, last, PRODUCT: tl.constexpr):
    """Codes int32 of float32 x; the other tensors are what `parameters` gave, in shapes that broadcast to that of x.

    PRODUCT: x and scale have 16 bits each, and the divisor is the inverse of the scale.
    """
    quotient = x * divisor + 3072.0 if PRODUCT else tl.div_rn(x, divisor)
    moved = quotient + (12582912.0 - 3072.0 if PRODUCT else 12582912.0)
    return tl.minimum(tl.maximum(moved.to(tl.int32, bitcast=True) + (zero - 0x4B400000), first), last)
