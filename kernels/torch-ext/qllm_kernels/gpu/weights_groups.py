"""Scales and zero points of groups, for the rows of a tile.

A row's scales lie side by side, and a program needs a few of each row at a time. There are three ways to read them:

    ONCE      where a row is one group: before the loop.
    TOGETHER  those of a step of the loop, which takes several groups: scales as a tile [N, COUNT], and zero points, a
              byte each, in words of four. These are loads that the compiler issues ahead of time. It does so once,
              however often they are asked for here.
    ALONE     one group at a time, with a load for which the program waits: groups that are larger than blocks, and rows
              whose zero points do not lie in words as those of the others do.
"""

from __future__ import annotations

import triton
import triton.language as tl

ONCE, TOGETHER, ALONE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def scale_of(scale, start, first, PLACE: tl.constexpr, COUNT: tl.constexpr, READ: tl.constexpr):
    """Scales [N, 1], in their type, of the group number `first` + PLACE of each row.

    start [N]: where the scales of each row begin. A step has COUNT groups, of which this is number PLACE. If they were
    read ONCE, `scale` is what was read.
    """
    if READ == ONCE:
        return scale
    elif READ == TOGETHER:
        scales = tl.load(scale + start[:, None] + first + tl.arange(0, COUNT)[None, :])
        return _column(scales, PLACE, COUNT)
    else:
        return tl.load(scale + start + (first + PLACE))[:, None]


@triton.jit
def zero_of(zero_point, start, first, PLACE: tl.constexpr, COUNT: tl.constexpr, READ: tl.constexpr):
    """As `scale_of`: zero points [N, 1], integers of any type."""
    if READ == ONCE:
        return zero_point
    elif READ == TOGETHER:
        WORDS: tl.constexpr = (COUNT + 3) // 4
        words = zero_point.to(tl.pointer_type(tl.int32)) + ((start + first) // 4)[:, None]
        word = _column(tl.load(words + tl.arange(0, WORDS)[None, :]), PLACE // 4, WORDS)
        byte = PLACE % 4
        if COUNT < 4:  # a row may begin, and a step, in the middle of a word
            byte += (((start & 3) + (first & 3)) & 3).to(tl.int32)[:, None]
        return (word >> (8 * byte)) & 0xFF
    else:
        return tl.load(zero_point + start + (first + PLACE))[:, None]


@triton.jit
def _column(tile, PLACE: tl.constexpr, COUNT: tl.constexpr):
    """Column number PLACE of a tile [N, COUNT]: [N, 1]. COUNT is a power of two; halves are parted within registers."""
    if COUNT == 1:
        return tile
    else:
        lower, upper = tl.split(tl.permute(tl.reshape(tile, (tile.shape[0], 2, COUNT // 2)), (0, 2, 1)))
        if PLACE < COUNT // 2:
            return _column(lower, PLACE, COUNT // 2)
        else:
            return _column(upper, PLACE - COUNT // 2, COUNT // 2)
