"""The tensors that stand for one packed weight in a compressed-tensors checkpoint, bit for bit the same numbers.

    pack-quantized   L.weight_packed      int32 [O, ceil(I * b / 32)]   codes as a dense stream of bits along I
                     L.weight_scale       float [O, G]                  as it is
                     L.weight_zero_point  int32 [ceil(O * b / 32), G]   if asymmetric: the same stream, along O
                     L.weight_shape       int64 [2]                     O, I
    int-quantized    L.weight             int8  [O, I]                  codes - 2^(b-1)
                     L.weight_scale       float [O, 1]

compressed-tensors takes codes and zero points as signed numbers, each less by 2^(b-1) than here, and stores them plus
2^(b-1): what is stored are the very codes and zero points of the packed checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..formats.bit_stream import pack_stream, stream_words
from ..packed import PackedTensor
from ..safetensors_stream import DTYPES, Item
from .groups import INT_QUANTIZED, Group
from .stored import WEIGHT, Piece, StoredModel, StoredWeight


def layer_items(stored: StoredModel, weight: StoredWeight, piece: Piece, group: Group) -> Iterator[Item]:
    """The tensors of one matrix in the words of compressed-tensors."""
    layer = piece.name.removesuffix(WEIGHT)
    rows, columns = piece.rows.stop - piece.rows.start, weight.entry.shape[-1]
    groups = 1 if group.group_size is None else columns // group.group_size
    scale_dtype = DTYPES[stored.checkpoint.tensors[weight.base + "_scale"].dtype]

    def packed() -> PackedTensor:
        return stored.packed(weight, piece)

    def zero_points() -> torch.Tensor:
        zero_point = packed().zero_point
        assert zero_point is not None
        return pack_stream(zero_point.t(), group.bits).t()

    yield Item(f"{layer}.weight_scale", scale_dtype, (rows, groups), lambda: packed().scale)
    if group.format == INT_QUANTIZED:
        # a byte less 128, as a signed one, is the byte with its highest bit turned
        yield Item(f"{layer}.weight", torch.int8, (rows, columns), lambda: (packed().codes() ^ 0x80).view(torch.int8))
        return
    words = (rows, stream_words(columns, group.bits))
    yield Item(f"{layer}.weight_packed", torch.int32, words, lambda: pack_stream(packed().codes(), group.bits))
    yield Item(f"{layer}.weight_shape", torch.int64, (2,), lambda: torch.tensor([rows, columns]))
    if not group.symmetric:
        columns_of_zeros = (stream_words(rows, group.bits), groups)
        yield Item(f"{layer}.weight_zero_point", torch.int32, columns_of_zeros, zero_points)
