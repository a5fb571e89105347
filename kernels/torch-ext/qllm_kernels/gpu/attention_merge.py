"""The stretches of each query joined: weighted by their maxima, with sinks, always in the same order."""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_split import LOG2E
from .rounding import rounded


@triton.jit
def merge_stretches(
    out,
    partial_values,
    partial_maxima,
    partial_sums,
    sinks,
    heads,
    count,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (query, columns) writes a part of out [B Hq Tq, DIM]; see `attend_stretch` for partial results.

    A query that sees nothing gets zeros, as in torch.
    """
    query, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    place = query * SPLITS + tl.arange(0, SPLITS)
    maxima, sums = tl.load(partial_maxima + place), tl.load(partial_sums + place)
    maximum = tl.max(maxima, 0)
    if sinks is not None:
        sink = tl.load(sinks + query // count % heads).to(tl.float32) * LOG2E
        maximum = tl.maximum(maximum, sink)
    # a sum that is no number may come with no maximum
    factors = tl.where(maxima > float("-inf"), tl.exp2(maxima - maximum), 1.0)
    factors = tl.where(sums == 0, 0.0, factors)
    sum = tl.sum(sums * factors, 0)
    if sinks is not None:
        sum += tl.where(sink > float("-inf"), tl.exp2(sink - maximum), 0.0)
    there = (sums != 0)[:, None] & (column < DIM)[None, :]
    values = tl.load(partial_values + place[:, None] * DIM + column[None, :], there, other=0.0)
    value = tl.sum(values * factors[:, None], 0) / tl.where(sum == 0, 1.0, sum)
    tl.store(out + query * DIM + column, rounded(value, out.dtype.element_ty), column < DIM)
