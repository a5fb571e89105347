"""Float32 to the type of a model, and from 16-bit words that hold such a number."""

from __future__ import annotations

import triton
import triton.language as tl

from . import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """x float32 in DTYPE, half to even."""
    if _INTERPRETED and DTYPE == tl.bfloat16:  # the interpreter cuts the bits that bfloat16 has no room for
        bits = x.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        x = tl.where(x == x, nearest, bits).to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def load_float(words, mask, DTYPE: tl.constexpr):
    """The number of DTYPE, as float32, at each address of an int16 word: float32 may lie at odd words, too."""
    word = tl.load(words, mask, other=0)
    if DTYPE == tl.float16:
        return word.to(tl.float16, bitcast=True).to(tl.float32)
    elif DTYPE == tl.bfloat16:
        return (word.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        high = tl.load(words + 1, mask, other=0).to(tl.int32)
        return ((word.to(tl.int32) & 0xFFFF) | (high << 16)).to(tl.float32, bitcast=True)
