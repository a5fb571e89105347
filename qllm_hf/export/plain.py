"""Packed weights as ordinary floating-point ones: what the codes mean, in the dtype of the scales."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..input_order import in_own_order
from ..safetensors_stream import DTYPES, Item
from .stored import Piece, StoredModel, StoredWeight


def plain_items(stored: StoredModel, weight: StoredWeight) -> Iterator[Item]:
    """The matrices of a weight under their names in float checkpoints: bit for bit those of `model.dequantize()`."""
    dtype = DTYPES[stored.checkpoint.tensors[weight.base + "_scale"].dtype]
    *experts, _, columns = weight.entry.shape
    for piece in weight.pieces:
        is_whole = piece.expert is None
        rows = weight.entry.shape[-2] if is_whole else piece.rows.stop - piece.rows.start
        shape = (columns, rows) if piece.transposed else (rows, columns)
        yield Item(
            piece.name,
            dtype,
            (*experts, *shape) if is_whole else shape,
            lambda piece=piece: _matrix(stored, weight, piece),  # type: ignore[misc]
        )


def _matrix(stored: StoredModel, weight: StoredWeight, piece: Piece) -> Tensor:
    matrix = stored.packed(weight, None if piece.expert is None else piece).decode()
    input_order = stored.input_order(weight)
    if input_order is not None:
        matrix = in_own_order(matrix, input_order)
    input_scale = stored.input_scale(weight)
    if input_scale is not None:
        matrix = matrix * input_scale.to(matrix.dtype)
    return matrix.transpose(-1, -2) if piece.transposed else matrix
