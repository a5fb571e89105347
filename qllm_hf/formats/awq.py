"""Codes and zero points of AWQ checkpoints (the `gemm` layout): streams of bits along the output channels.

    qweight int32 [I, O * b / 32]    the O codes of each input channel
    qzeros  int32 [G, O * b / 32]    the O zero points of each group
    scales  float [G, O]             w = (code - zero_point) * scale

With 4 bits the eight codes of a word do not stand in their order: the kernels this was made for take out two codes that
are four places apart with one shift, so bits 4j .. 4j + 3 of a word hold channel `ORDER[j]` of its eight. Other
bit-widths, which GPTQModel added, stand in their order.

Source: AutoAWQ 0.2.9, `WQLinear_GEMM.from_linear`; GPTQModel 7.6, `awq/utils/packing_utils.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bit_stream import unpack_stream

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpack_columns(words: Tensor, bits: int, channels: int) -> Tensor:
    """Codes uint8 [O, R] of words int32 [R, O * bits / 32], of weights (R = I) or of zero points (R = G).

    Raises:
        CheckpointError: the number of words does not fit O = `channels`.
    """
    stored = unpack_stream(words, bits, channels)
    if bits != 4:
        return stored.t()
    place = torch.tensor(ORDER, device=words.device).argsort()  # where each channel stands
    ordered: Tensor = stored.unflatten(-1, (-1, len(ORDER)))[..., place].flatten(-2)
    return ordered.t()
