"""Codes <-> 32-bit words as one dense stream of bits: the layout of compressed-tensors' `pack-quantized`.

Code number i takes the bits `i*b .. i*b + b - 1` of its row, lowest bit first, so with 3, 5, 6 and 7 bits some codes
lie across the border of two words:

    3 bits      word 0                                   word 1
    bit         0-2   3-5   6-8   ...  27-29   30-31     0      1-3     ...
                c0    c1    c2    ...  c9      c10 low   c10    c11     ...
                                                         high

Why in runs of eight: eight codes of b bits are exactly b bytes, whatever b is, so a run is built in one 64-bit
integer, and no code ever has to be cut by hand.

Source: compressed-tensors 0.20, `compressors/pack_quantized/helpers.py`; llama.cpp and GPTQ have layouts of their own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import CheckpointError, SchemeError

WORD = torch.int32
WORD_BITS = 32
_RUN = 8  # codes in a run, and bytes in the integer that holds one


def stream_words(length: int, bits: int) -> int:
    """32-bit words that a stream of `length` codes of `bits` bits takes.

    >>> stream_words(128, 3)
    12
    """
    return -(-length * bits // WORD_BITS)


def pack_stream(codes: Tensor, bits: int) -> Tensor:
    """Words int32 [..., ceil(I * bits / 32)] of codes uint8 [..., I], each below 2^bits.

    Raises:
        SchemeError: codes are not uint8, or bits are not 1..8.

    >>> pack_stream(torch.tensor([1, 2, 3, 0], dtype=torch.uint8), 4).tolist()
    [801]
    """
    _check_bits(bits)
    if codes.dtype != torch.uint8:
        raise SchemeError(f"pack_stream takes uint8 codes, not {codes.dtype}.")
    *rows, length = codes.shape
    words = stream_words(length, bits)
    if not codes.numel():
        return codes.new_zeros((*rows, words), dtype=WORD)
    runs = F.pad(codes, (0, -length % _RUN)).unflatten(-1, (-1, _RUN))
    joined = torch.zeros(runs.shape[:-1], dtype=torch.int64, device=codes.device)
    for place in range(_RUN):
        joined |= runs[..., place].to(torch.int64) << (bits * place)
    stream = joined.unsqueeze(-1).view(torch.uint8)[..., :bits].reshape(*rows, runs.shape[-2] * bits)
    # the bytes past the last word hold the zeros that filled the last run
    return _of_size(stream, words * WORD.itemsize).view(WORD)


def unpack_stream(words: Tensor, bits: int, length: int) -> Tensor:
    """Codes uint8 [..., length] of words int32 [..., ceil(length * bits / 32)].

    Raises:
        CheckpointError: the words are not int32, or their number does not fit the length.
        SchemeError: bits are not 1..8.

    >>> unpack_stream(torch.tensor([801], dtype=torch.int32), 4, 4).tolist()
    [1, 2, 3, 0]
    """
    _check_bits(bits)
    if words.dtype != WORD or words.shape[-1] != stream_words(length, bits):
        raise CheckpointError(
            f"{length} codes of {bits} bits take {stream_words(length, bits)} int32 words, "
            f"got {words.shape[-1]} of {words.dtype}."
        )
    rows = words.shape[:-1]
    if not words.numel():
        return words.new_zeros((*rows, length), dtype=torch.uint8)
    count = -(-length // _RUN)
    stream = _of_size(words.contiguous().view(torch.uint8), count * bits)
    runs = _of_size(stream.unflatten(-1, (count, bits)), _RUN).view(torch.int64)
    codes = torch.empty((*rows, count, _RUN), dtype=torch.uint8, device=words.device)
    for place in range(_RUN):
        codes[..., place] = (runs.squeeze(-1) >> (bits * place)) & (2**bits - 1)
    return codes.flatten(-2)[..., :length]


def _of_size(stream: Tensor, size: int) -> Tensor:
    """A copy of bytes [..., n] as [..., size]: cut, or filled with zeros. Its strides are those of its shape."""
    out = stream.new_zeros((*stream.shape[:-1], size))
    kept = min(size, stream.shape[-1])
    out[..., :kept] = stream[..., :kept]
    return out


def _check_bits(bits: int) -> None:
    if bits not in range(1, 9):
        raise SchemeError(f"bits={bits!r}: a stream takes codes of 1 to 8 bits.")
