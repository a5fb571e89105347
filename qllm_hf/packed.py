"""PackedTensor: a quantized tensor as it is stored: words, scales and zero points that belong together."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import native, on_gpu
from .layout import group_count, row_words
from .packing import WORD, pack, unpack
from .pages import on_large_pages
from .scheme import PER_TENSOR, Spec
from .trials import difference, distance, ends
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
        return _encode_natively(x, spec, scale_dtype or x.dtype) or encode_reference(x, spec, scale_dtype)

    @classmethod
    def encode_weight(cls, weight: Tensor, spec: Spec) -> PackedTensor:
        """As `encode`, some rows at a time: the memory needed on top of the result stays small, whatever the weight."""
        if spec.group_size == PER_TENSOR or weight.numel() <= _PIECE:
            return cls.encode(weight, spec)
        at_once = _encode_natively(weight, spec, weight.dtype)
        if at_once is not None:
            return at_once
        rows = weight.reshape(-1, weight.shape[-1])
        step = max(1, _PIECE // rows.shape[1])
        whole = _empty(weight, spec, weight.dtype)
        for start in range(0, rows.shape[0], step):
            piece = cls.encode(rows[start : start + step], spec)
            for tensor, part in zip(whole[:3], piece[:3], strict=True):
                if tensor is not None and part is not None:
                    tensor.view(-1, tensor.shape[-1])[start : start + step] = part
        return whole

    def codes(self) -> Tensor:
        """Codes uint8 [..., K]."""
        return unpack(self.words, self.spec.bits, self.length)

    def decode(self, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor [..., K] that the codes mean, in the dtype of the scale or `dtype`."""
        dtype = dtype or self.scale.dtype
        if on_gpu.is_for(self.words):
            return on_gpu.TRIALS.run(
                ("unpacking", self.spec, self.length, self.scale.dtype, dtype),
                lambda: on_gpu.decode(*self, dtype),
                lambda found: difference(ends(found), decode_reference(self._ends(), dtype)),
                lambda: decode_reference(self, dtype),
            )
        found = native.decode(*self, dtype)
        return decode_reference(self, dtype) if found is None else found

    def part(self, index: int | slice) -> PackedTensor:
        """Part of the tensor along its first dimension: an expert, or rows that have scales of their own."""
        zero_point = None if self.zero_point is None else self.zero_point[index]
        return self._replace(words=self.words[index], scale=self.scale[index], zero_point=zero_point)

    def _ends(self) -> PackedTensor:
        words, scale, zero_point = self[:3]
        zero_point = None if zero_point is None else ends(zero_point)
        return self._replace(words=ends(words), scale=ends(scale), zero_point=zero_point)

    def nbytes(self) -> int:
        """Bytes of words, scales and zero points."""
        tensors = (self.words, self.scale, self.zero_point)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def encode_reference(x: Tensor, spec: Spec, scale_dtype: torch.dtype | None = None) -> PackedTensor:
    """As `PackedTensor.encode`, in torch alone: for all that the kernels do not take, and to compare them with."""
    codes, scale, zero_point = quantize(x, spec, scale_dtype)
    return PackedTensor(pack(codes, spec.bits), scale, zero_point, spec, x.shape[-1])


def decode_reference(packed: PackedTensor, dtype: torch.dtype | None = None) -> Tensor:
    """As `PackedTensor.decode`, in torch alone."""
    return dequantize(packed.codes(), packed.scale, packed.zero_point, packed.spec, dtype)


def _encode_natively(x: Tensor, spec: Spec, scale_dtype: torch.dtype) -> PackedTensor | None:
    """x [..., K] packed by the kernels, or None where they do not take it."""
    if on_gpu.is_for(x):
        return _encode_on_gpu(x, spec, scale_dtype)
    if not native.takes(x, spec):
        return None
    packed = _empty(x, spec, scale_dtype)
    return packed if native.encode_into(x, packed.words, packed.scale, packed.zero_point, spec) else None


def _encode_on_gpu(x: Tensor, spec: Spec, scale_dtype: torch.dtype) -> PackedTensor | None:
    def encode() -> PackedTensor | None:
        found = on_gpu.encode(x, spec, scale_dtype)
        return None if found is None else PackedTensor(*found, spec, x.shape[-1])

    def fault(found: PackedTensor | None) -> str | None:
        assert found is not None
        wanted = encode_reference(ends(x), spec, scale_dtype)
        return distance(decode_reference(found._ends()), decode_reference(wanted))

    kind = ("packing", spec, x.shape[-1], x.dtype, scale_dtype)
    packed: PackedTensor | None = on_gpu.TRIALS.run(kind, encode, fault, lambda: None)
    return packed


def _empty(x: Tensor, spec: Spec, scale_dtype: torch.dtype) -> PackedTensor:
    """Room for x [..., K] packed, on its device."""
    shapes = packed_shapes(tuple(x.shape), spec, scale_dtype)
    parts = {part: on_large_pages(x.new_empty(shape, dtype=dtype)) for part, (shape, dtype) in shapes.items()}
    return PackedTensor(parts["words"], parts["scale"], parts.get("zero_point"), spec, x.shape[-1])


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


def packed_nbytes(shape: tuple[int, ...], spec: Spec, dtype: torch.dtype) -> int:
    """Bytes of words, scales and zero points of a tensor [..., K] of `dtype`."""
    return sum(math.prod(part) * kind.itemsize for part, kind in packed_shapes(shape, spec, dtype).values())
