"""PackedTensor: a quantized tensor as it is stored: words, scales and zero points that belong together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .layout import group_count, row_words
from .packing import WORD, pack, unpack
from .scheme import PER_TENSOR, Spec
from .uniform import dequantize, quantize

# Elements that are quantized at a time, so that intermediate results fit the processor's cache.
_PIECE = 2**19


class PackedTensor(NamedTuple):
    """A tensor [..., K] quantized along K and packed.

    Attributes:
        words: int16 [..., row_words(K, bits)].
        scale: float [..., G].
        zero_point: uint8 [..., G], or None if symmetric.
        spec: bits, group size, symmetry.
        length: K.
    """

    words: Tensor
    scale: Tensor
    zero_point: Tensor | None
    spec: Spec
    length: int

    @classmethod
    def encode(cls, x: Tensor, spec: Spec, scale_dtype: torch.dtype | None = None) -> PackedTensor:
        """Quantize x [..., K] and pack it, with scales in the dtype of x or `scale_dtype`."""
        codes, scale, zero_point = quantize(x, spec, scale_dtype)
        return cls(pack(codes, spec.bits), scale, zero_point, spec, x.shape[-1])

    @classmethod
    def encode_weight(cls, weight: Tensor, spec: Spec) -> PackedTensor:
        """As `encode`, some rows at a time: the memory needed on top of the result stays small, whatever the weight."""
        if spec.group_size == PER_TENSOR or weight.numel() <= _PIECE:
            return cls.encode(weight, spec)
        rows = weight.reshape(-1, weight.shape[-1])
        step = max(1, _PIECE // rows.shape[1])
        shapes = packed_shapes(tuple(weight.shape), spec, weight.dtype)
        whole = {part: weight.new_empty(shape, dtype=dtype) for part, (shape, dtype) in shapes.items()}
        flat = {part: tensor.view(-1, tensor.shape[-1]) for part, tensor in whole.items()}
        for start in range(0, rows.shape[0], step):
            piece = cls.encode(rows[start : start + step], spec)
            for part, tensor in flat.items():
                tensor[start : start + step] = getattr(piece, part)
        return cls(whole["words"], whole["scale"], whole.get("zero_point"), spec, weight.shape[-1])

    def codes(self) -> Tensor:
        """Codes uint8 [..., K]."""
        return unpack(self.words, self.spec.bits, self.length)

    def decode(self, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor [..., K] that the codes mean, in the dtype of the scale or `dtype`."""
        return dequantize(self.codes(), self.scale, self.zero_point, self.spec, dtype)

    def part(self, index: int | slice) -> PackedTensor:
        """Part of the tensor along its first dimension: an expert, or rows that have scales of their own."""
        zero_point = None if self.zero_point is None else self.zero_point[index]
        return self._replace(words=self.words[index], scale=self.scale[index], zero_point=zero_point)

    def nbytes(self) -> int:
        """Bytes of words, scales and zero points."""
        tensors = (self.words, self.scale, self.zero_point)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def packed_shapes(
    shape: tuple[int, ...], spec: Spec, dtype: torch.dtype
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of `words`, `scale` and (unless symmetric) `zero_point` for a tensor [..., K] of `dtype`."""
    *rows, length = shape
    if spec.group_size == PER_TENSOR:
        groups: tuple[int, ...] = (*rows[:-1], 1, 1)
    else:
        groups = (*rows, group_count(length, spec.group_size))
    shapes = {"words": ((*rows, row_words(length, spec.bits)), WORD), "scale": (groups, dtype)}
    if not spec.symmetric:
        shapes["zero_point"] = (groups, torch.uint8)
    return shapes
