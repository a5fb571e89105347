"""Codes <-> 16-bit words, dense for 2 to 8 bits. The layout is drawn in `qllm_hf.layout`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import CheckpointError, SchemeError
from .layout import BLOCK, FIELDS, WORD_BITS, field_words, row_words

WORD = torch.int16
"""Words are stored signed because torch lacks shifts on unsigned 16-bit integers; only the bits count."""


def pack(codes: Tensor, bits: int) -> Tensor:
    """Words int16 [..., row_words(K, bits)] of codes uint8 [..., K].

    Raises:
        SchemeError: codes are not uint8, or bits are not 2..8.

    >>> pack(torch.tensor([1, 2, 3, 0], dtype=torch.uint8), 4).tolist()
    [801]
    """
    _check_bits(bits)
    if codes.dtype != torch.uint8:
        raise SchemeError(f"pack takes uint8 codes, not {codes.dtype}.")
    *rows, length = codes.shape
    full = length - length % BLOCK
    parts = []
    if full:
        blocks = codes[..., :full].reshape(*rows, full // BLOCK, BLOCK)
        parts.append(_pack_block(blocks, bits).reshape(*rows, row_words(full, bits)))
    if length > full:
        parts.append(_pack_block(codes[..., full:], bits))
    return torch.cat(parts, -1) if parts else codes.new_empty((*rows, 0), dtype=WORD)


def unpack(words: Tensor, bits: int, length: int) -> Tensor:
    """Codes uint8 [..., length] of words int16 [..., row_words(length, bits)].

    Raises:
        CheckpointError: the words are not int16 or their number does not fit the length.
    """
    _check_bits(bits)
    if words.dtype != WORD or words.shape[-1] != row_words(length, bits):
        raise CheckpointError(
            f"{length} codes of {bits} bits take {row_words(length, bits)} int16 words, "
            f"got {words.shape[-1]} of {words.dtype}."
        )
    rows = words.shape[:-1]
    full = length - length % BLOCK
    full_words = row_words(full, bits)
    parts = []
    if full:
        blocks = words[..., :full_words].reshape(*rows, full // BLOCK, row_words(BLOCK, bits))
        parts.append(_unpack_block(blocks, bits, BLOCK).reshape(*rows, full))
    if length > full:
        parts.append(_unpack_block(words[..., full_words:], bits, length - full))
    if not parts:
        return words.new_empty((*rows, 0), dtype=torch.uint8)
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _pack_block(codes: Tensor, bits: int) -> Tensor:
    """One block [..., n] -> its words, field after field."""
    fields = []
    shift = 0
    for width in FIELDS[bits]:
        field = (codes >> shift) & (2**width - 1)
        fields.append(_pack_field(field, width))
        shift += width
    return torch.cat(fields, -1) if len(fields) > 1 else fields[0]


def _unpack_block(words: Tensor, bits: int, length: int) -> Tensor:
    """The words of one block -> its codes [..., length]."""
    codes: Tensor | None = None
    start = shift = 0
    for width in FIELDS[bits]:
        stop = start + field_words(length, width)
        field = _unpack_field(words[..., start:stop], width, length)
        codes = field if codes is None else codes | (field << shift)
        start, shift = stop, shift + width
    assert codes is not None
    return codes


def _pack_field(field: Tensor, width: int) -> Tensor:
    per_word, per_byte = WORD_BITS // width, 8 // width
    count = field_words(field.shape[-1], width)
    padded = F.pad(field, (0, count * per_word - field.shape[-1]))
    if width == 8:  # bytes in their order
        return padded.contiguous().view(WORD)
    planes = padded.reshape(*field.shape[:-1], 2, per_byte, count)  # low byte and high byte of the words
    word_bytes = planes[..., 0, :]
    for plane in range(1, per_byte):
        word_bytes = word_bytes | (planes[..., plane, :] << (width * plane))
    low, high = word_bytes.unbind(-2)
    return torch.stack((low, high), -1).view(WORD).squeeze(-1)


def _unpack_field(words: Tensor, width: int, length: int) -> Tensor:
    word_bytes = words.contiguous().view(torch.uint8)
    if width == 8:
        return word_bytes[..., :length]
    low_high = word_bytes.unflatten(-1, (-1, 2)).transpose(-1, -2).unsqueeze(-2)  # [..., 2, 1, words]
    shifts = torch.arange(0, 8, width, device=words.device, dtype=torch.uint8).unsqueeze(-1)
    planes: Tensor = (low_high >> shifts) & (2**width - 1)  # [..., 2, planes per byte, words]
    return planes.flatten(-3)[..., :length]


def _check_bits(bits: int) -> None:
    if bits not in FIELDS:
        raise SchemeError(f"bits={bits!r}: packing takes 2 to 8 bits.")
