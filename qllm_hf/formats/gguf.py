"""Blocks of 32 weights as llama.cpp stores them: a float16 scale and signed integers around 0.

    Q4_0   d  | 16 bytes: low half-bytes are weights 0..15, high ones 16..31          (q - 8) * d     18 bytes
    Q5_0   d  | 4 bytes: the fifth bit of each | 16 bytes as above                    (q - 16) * d    22 bytes
    Q8_0   d  | 32 signed bytes                                                       q * d           34 bytes

A code less its zero point is such an integer, so zero points need no place of their own: 4 bits with zero points span
-15 .. 15 and fit into Q5_0, exactly. Q4_1, which has a minimum beside the scale, would have to round it: -zero * scale
needs up to 15 bits where float16 has 11.

Source: ggml `block_q4_0`, `block_q5_0`, `block_q8_0` and `dequantize_row_*`; gguf 0.19 `quants.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError

BLOCK = 32


class Block(NamedTuple):
    """A kind of block: its name, the integers it holds, and its bytes."""

    name: str
    low: int
    high: int
    nbytes: int


BLOCKS = (Block("Q4_0", -8, 7, 18), Block("Q5_0", -16, 15, 22), Block("Q8_0", -128, 127, 34))
"""From the smallest."""


def block_for(bits: int, *, symmetric: bool) -> Block | None:
    """The smallest kind of block that holds every code less its zero point; None for 8 bits with zero points.

    >>> [block_for(bits, symmetric=False).name for bits in (2, 3, 4, 5, 7)], block_for(8, symmetric=False)
    (['Q4_0', 'Q4_0', 'Q5_0', 'Q8_0', 'Q8_0'], None)
    """
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (1 - 2**bits, 2**bits - 1)
    return next((block for block in BLOCKS if block.low <= low and high <= block.high), None)


def encode_blocks(steps: Tensor, scale: Tensor, block: Block) -> Tensor:
    """Bytes uint8 [O, I / 32 * nbytes] of integers int16 [O, I] with float16 scales [O, I / 32].

    Raises:
        CheckpointError: an integer does not fit into this kind of block.
    """
    if bool((steps < block.low).any()) or bool((steps > block.high).any()):
        raise CheckpointError(f"integers from {int(steps.min())} to {int(steps.max())} do not fit into {block.name}.")
    blocks = steps.unflatten(-1, (-1, BLOCK))
    parts = [scale.contiguous().view(torch.uint8).unflatten(-1, (-1, 2))]
    if block.name == "Q8_0":
        parts.append(blocks.to(torch.int8).view(torch.uint8))
    else:
        q = (blocks - block.low).to(torch.int32)
        if block.name == "Q5_0":
            fifth = ((q >> 4) << torch.arange(BLOCK, dtype=torch.int32)).sum(-1, dtype=torch.int64)
            parts.append(fifth.unsqueeze(-1).view(torch.uint8)[..., :4])
        halves = (q & 15).to(torch.uint8)
        parts.append(halves[..., : BLOCK // 2] | (halves[..., BLOCK // 2 :] << 4))
    return torch.cat(parts, -1).flatten(-2)
