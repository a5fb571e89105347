"""Activations to integers: every token quantized by itself when it is multiplied, with the codes that torch chooses.

What tensor cores multiply is signed and has 8 bits. Codes less their zero point fit, except those of 8 bits with a zero
point: from -255 to 255. These are stored less 128, and the product makes up for the rest of the zero point.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .planar import BLOCK, in_blocks
from .quantize import codes, parameters, range_bits

TYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_AT_ONCE = 8192


class Tokens(NamedTuple):
    """Quantized vectors x [M, K]: x = scale (codes - zero_point).

    Attributes:
        codes: int8 [M, K rounded up to 128]; after the end they stand for zeros.
        scale: [M], in the type of x.
        zero_point: int32 [M], or None where it has been subtracted from the codes: always but for 8 bits with zero
            points.
        sums: int32 [S, M], the sums of `codes - zero_point` over spans of elements; None if not wanted.
        bits, symmetric: as asked for.
        length: K.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    sums: Tensor | None
    bits: int
    symmetric: bool
    length: int


def refuses(x: Tensor, *, bits: int) -> str | None:
    """Why tokens x [M, K] cannot be quantized, or None."""
    if bits not in range(2, 9):
        return f"activations of {bits} bits: takes 2 to 8"
    if x.dtype not in TYPES:
        return f"activations in {str(x.dtype).removeprefix('torch.')}: takes float32, bfloat16 and float16"
    return None


def quantize_tokens(x: Tensor, *, bits: int, symmetric: bool, sums_over: int = 0) -> Tokens:
    """Tokens of x [M, K], one scale (and zero point) for each.

    `sums_over` is the length of the spans that are summed: 32, 64, 128, more for whole tokens, or 0 for no sums. A
    token that is not finite gets a scale that is not, and codes that are their zero point: its products are NaN.

    Raises:
        ValueError: `refuses` says why, x is not two-dimensional, or spans have another length.
    """
    reason = refuses(x, bits=bits) if x.dim() == 2 else f"x {list(x.shape)}: takes [M, K]"
    if reason is None and sums_over not in (0, 32, 64, 128) and sums_over <= max(128, x.shape[1] - 1):
        reason = f"sums over {sums_over} of {x.shape[1]} elements: takes 32, 64, 128, and whole tokens"
    if reason is not None:
        raise ValueError(reason)
    count, length = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    padded = in_blocks(length)
    numbers = x.new_empty((count, padded), dtype=torch.int8)
    scale = x.new_empty(count)
    zero_point = x.new_empty(count, dtype=torch.int32) if bits == 8 and not symmetric else None
    sums = x.new_empty((-(-length // sums_over), count), dtype=torch.int32) if sums_over else None
    if count and length:
        at_once = min(_MOST_AT_ONCE, triton.next_power_of_2(padded))
        with torch.cuda.device_of(x):
            quantize[(count,)](
                numbers,
                scale.view(torch.int16) if scale.itemsize == 2 else scale.view(torch.int32),
                zero_point,
                sums,
                x,
                x.stride(0),
                LENGTH=length,
                BITS=bits,
                SYMMETRIC=symmetric,
                SUMS_OVER=sums_over,
                AT_ONCE=at_once,
                num_warps=max(1, at_once // 1024),
            )
    return Tokens(numbers, scale, zero_point, sums, bits, symmetric, length)


@triton.jit
def quantize(
    numbers,
    scale_bits,
    zero_point,
    sums,
    x,
    x_stride,
    LENGTH: tl.constexpr,
    BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    SUMS_OVER: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    PADDED: tl.constexpr = in_blocks(LENGTH)
    STEPS: tl.constexpr = (PADDED + AT_ONCE - 1) // AT_ONCE
    TYPE: tl.constexpr = x.dtype.element_ty
    PRODUCT: tl.constexpr = TYPE != tl.float32
    token = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, AT_ONCE)
    x += token * x_stride
    lowest, highest = tl.zeros((AT_ONCE,), tl.uint32), tl.zeros((AT_ONCE,), tl.int32)
    for step in range(STEPS):
        column = step * AT_ONCE + place
        low, high = range_bits(tl.load(x + column, column < LENGTH, other=0).to(tl.float32), SYMMETRIC)
        lowest, highest = tl.maximum(lowest, low), tl.maximum(highest, high)
    lowest, highest = tl.max(lowest, 0, keep_dims=True), tl.max(highest, 0, keep_dims=True)
    bits, divisor, zero, first, last = parameters(lowest, highest, BITS, SYMMETRIC, TYPE, PRODUCT)
    only = tl.arange(0, 1)
    tl.store(scale_bits + token + only, bits.to(scale_bits.dtype.element_ty))
    center = zero
    if zero_point is not None:
        center = tl.full(zero.shape, 128, tl.int32)
        tl.store(zero_point + token + only, zero - 128)
    SPANS: tl.constexpr = AT_ONCE // SUMS_OVER if SUMS_OVER > 0 else 1
    ALL: tl.constexpr = (LENGTH + SUMS_OVER - 1) // SUMS_OVER if SUMS_OVER > 0 else 1
    whole = tl.zeros(zero.shape, tl.int32)
    for step in range(STEPS):
        column = step * AT_ONCE + place
        vector = tl.load(x + column, column < LENGTH, other=0).to(tl.float32)
        chosen = codes(vector, divisor, zero, first, last, PRODUCT)
        tl.store(numbers + token * PADDED + column, (chosen - center).to(tl.int8), column < PADDED)
        if SUMS_OVER > BLOCK:
            whole += tl.sum(chosen - zero, 0, keep_dims=True)
        elif SUMS_OVER > 0:
            span = step * SPANS + tl.arange(0, SPANS)
            total = tl.sum(tl.reshape(chosen - zero, (SPANS, SUMS_OVER)), 1)
            tl.store(sums + span * tl.num_programs(0) + token, total, span < ALL)
    if SUMS_OVER > BLOCK:
        tl.store(sums + token + only, whole)
