"""Codes and zero points of GPTQ checkpoints: dense streams of bits, down the columns of a transposed weight.

    qweight int32 [I * b / 32, O]    a stream of the I codes of each output channel, top to bottom
    qzeros  int32 [G, O * b / 32]    a stream of the O zero points of each group, left to right
    scales  float [G, O]
    g_idx   int32 [I]                the group of each input channel; w = (code - zero_point[g_idx]) * scale[g_idx]

The first format (`gptq`) stores each zero point less one, `gptq_v2` as it is. A zero point of 0 then becomes -1, which
no field of b bits holds. GPTQModel and AutoRound subtract 1 from all fields of a word at once, so the borrow goes
through the fields above, and adding 1 to all of them at once is exact. Programs that subtracted from each field alone
lost what stood beside it. The files look alike: a field with all bits set is the sign of either (`has_borrow`). With
3 bits fields lie across words, and GPTQModel counts each up alone, modulo 8.

Source: GPTQModel 7.6, `BaseQuantLinear.pack_block`, `convert_gptq_v1_to_v2_format_module`, `_shift_gptq_qzeros`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bit_stream import unpack_stream

BITS = (2, 3, 4, 8)


def unpack_codes(qweight: Tensor, bits: int, length: int) -> Tensor:
    """Codes uint8 [O, length] of qweight int32 [length * bits / 32, O].

    Raises:
        CheckpointError: the number of words does not fit the length.
    """
    return unpack_stream(qweight.t(), bits, length)


def unpack_zero_points(qzeros: Tensor, bits: int, channels: int, *, less_one: bool) -> Tensor:
    """Zero points uint8 [O, G] of qzeros int32 [G, O * bits / 32] for O = `channels`.

    Args:
        less_one: they are stored less one: the first format.

    Raises:
        CheckpointError: the number of words does not fit the channels.
    """
    if not less_one:
        return unpack_stream(qzeros, bits, channels).t()
    if bits == 3:
        return ((unpack_stream(qzeros, bits, channels) + 1) & 7).t()
    ones = sum(1 << shift for shift in range(0, 32, bits))
    words = (qzeros.to(torch.int64) + ones) & 0xFFFFFFFF
    signed = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    return unpack_stream(signed, bits, channels).t()


def has_borrow(qzeros: Tensor, bits: int, channels: int) -> bool:
    """Whether zero points that are stored less one include a 0, which readers of this format do not agree on."""
    return bool((unpack_stream(qzeros, bits, channels) == 2**bits - 1).any())
