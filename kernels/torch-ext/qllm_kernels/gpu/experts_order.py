"""Rows that go to experts, put in the order of experts and cut into blocks of one expert each, without asking the host.

How many rows an expert has is known on the device alone. So there is room for as many blocks as there can be: a block
more than whole ones for each expert. Those that are not needed are empty.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_AT_ONCE = 2048


def block_count(rows: int, experts: int, size: int) -> int:
    """Blocks of `size` rows for any choice of experts, and for the rows that have none."""
    return rows // size + experts + 1


def in_order(chosen: Tensor, experts: int, size: int) -> tuple[Tensor, Tensor]:
    """Rows of the same expert side by side, each expert's in their order, and their blocks of `size`.

    chosen [n], integers: the expert of each row. Those outside 0 .. experts - 1 stand for none, number `experts`.

    Returns:
        order int32 [n], numbers of rows, and blocks int32 [3, B], with B = `block_count`: the expert, where in the
        order the block begins, and where the rows of the expert end. A block that begins there, or behind, is empty.
    """
    order = chosen.new_empty(chosen.shape[0], dtype=torch.int32)
    blocks = chosen.new_empty((3, block_count(chosen.shape[0], experts, size)), dtype=torch.int32)
    at_once = min(_MOST_AT_ONCE, max(128, triton.next_power_of_2(chosen.shape[0])))
    with torch.cuda.device_of(chosen):
        order_rows[(experts + 1,)](
            order, blocks, chosen, chosen.shape[0], blocks.shape[1], SIZE=size, AT_ONCE=at_once, num_warps=4
        )
    return order, blocks


@triton.jit(do_not_specialize=["rows", "count"])
def order_rows(order, blocks, chosen, rows, count, SIZE: tl.constexpr, AT_ONCE: tl.constexpr):
    """A program for each expert, and the last for rows that have none: counts rows, then writes its own and its blocks.

    Blocks of an expert begin at number (rows before it) / SIZE + (experts before it), rounded down: there is always
    room up to those of the next one.
    """
    expert = tl.program_id(0)
    experts = tl.num_programs(0) - 1
    before, own, done = expert * 0, expert * 0, expert * 0
    while done < rows:
        experts_here = _experts(chosen, done, rows, experts, AT_ONCE)
        before += tl.sum((experts_here < expert).to(tl.int32))
        own += tl.sum((experts_here == expert).to(tl.int32))
        done += AT_ONCE
    found, done = before, expert * 0
    while done < rows:
        mine = (_experts(chosen, done, rows, experts, AT_ONCE) == expert).to(tl.int32)
        tl.store(order + found + tl.cumsum(mine) - 1, done + tl.arange(0, AT_ONCE), mine > 0)
        found += tl.sum(mine)
        done += AT_ONCE
    first = before // SIZE + expert
    done, room = expert * 0, (before + own) // SIZE + 1 + expert - first
    while done < room:
        block = done + tl.arange(0, AT_ONCE)
        place = blocks + first + block
        tl.store(place, 0 * block + expert, block < room)
        tl.store(place + count, before + block * SIZE, block < room)
        tl.store(place + 2 * count, 0 * block + before + own, block < room)
        done += AT_ONCE


@triton.jit
def _experts(chosen, first, rows, experts, AT_ONCE: tl.constexpr):
    """Experts int32 [AT_ONCE] of rows from `first` on: `experts` for none, and more beyond the last row."""
    row = first + tl.arange(0, AT_ONCE)
    numbers = tl.load(chosen + row, row < rows, other=0)
    numbers = tl.where((numbers >= 0) & (numbers < experts), numbers, experts).to(tl.int32)
    return tl.where(row < rows, numbers, experts + 1)
