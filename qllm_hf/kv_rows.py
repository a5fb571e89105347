"""Keys and values as rows: everything about one token and head in one run of 16-bit words.

A vector of keys [.., D] becomes a row of int16 words [.., R]:

    | packed codes: row_words(D, bits) | scales: 1 word per group (2 in float32) | zero points: 1 byte per group |

rounded up to a whole word. One tensor [B, H, T, R] then stands for the keys of a layer, and all that a
cache does with tokens and sequences (append, crop, reorder, repeat, roll, offload) is the same operation
on rows as it was on vectors. Each token is quantized once, when it is written, and nothing it meets
later changes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native, on_gpu
from .layout import group_count, row_words
from .packed import PackedTensor, decode_reference, encode_reference
from .packing import WORD
from .scheme import Scheme, Spec


@dataclass(frozen=True)
class RowFormat:
    """How vectors [.., length] of a dtype become rows. With spec None the words are the float bits themselves."""

    spec: Spec | None
    length: int
    dtype: torch.dtype

    @property
    def words(self) -> int:
        """Words per row."""
        if self.spec is None:
            return self.length * self.dtype.itemsize // 2
        groups = group_count(self.length, self.spec.group_size)
        return self._code_words + groups * self.dtype.itemsize // 2 + (0 if self.spec.symmetric else -(-groups // 2))

    @property
    def _code_words(self) -> int:
        assert self.spec is not None
        return row_words(self.length, self.spec.bits)

    def encode(self, x: Tensor) -> Tensor:
        """Rows int16 [.., words] of x [.., length]."""
        if self.spec is None:
            return _compact(x).view(WORD)
        found = _compiled(x).encode_rows(x, self.spec, self.words) if self._is_for(x) else None
        return self.encode_reference(x) if found is None else found

    def encode_into(self, x: Tensor, rows: Tensor) -> None:
        """Write the rows of x [.., length] to `rows` int16 [.., words], which may be a part of a larger tensor."""
        spec = self.spec
        if spec is None or not self._is_for(x) or _compiled(x).encode_rows(x, spec, self.words, rows) is None:
            rows.copy_(self.encode(x))

    def _is_for(self, x: Tensor) -> bool:
        return x.dtype == self.dtype and x.shape[-1] == self.length

    def encode_reference(self, x: Tensor) -> Tensor:
        """As `encode` with a spec, in torch alone: for all that the kernels do not take, and to compare them with."""
        assert self.spec is not None
        packed = encode_reference(x, self.spec)
        parts = [packed.words, _compact(packed.scale).view(WORD)]
        if packed.zero_point is not None:
            groups = packed.zero_point.shape[-1]
            parts.append(_compact(F.pad(packed.zero_point, (0, groups % 2))).view(WORD))
        return torch.cat(parts, -1)

    def split(self, rows: Tensor) -> PackedTensor:
        """The packed tensor that quantized rows hold."""
        assert self.spec is not None
        groups = group_count(self.length, self.spec.group_size)
        scales = self._code_words + groups * self.dtype.itemsize // 2
        scale = _compact(rows[..., self._code_words : scales]).view(self.dtype)
        zero_point = None
        if not self.spec.symmetric:
            zero_bytes = _compact(rows[..., scales:]).view(torch.uint8)
            zero_point = zero_bytes[..., :groups]
        return PackedTensor(rows[..., : self._code_words], scale, zero_point, self.spec, self.length)

    def decode(self, rows: Tensor) -> Tensor:
        """The vectors [.., length] that rows stand for."""
        if self.spec is None:
            return _compact(rows).view(self.dtype)
        found = _compiled(rows).decode_rows(rows, self.spec, self.length, self.dtype)
        return self.decode_reference(rows) if found is None else found

    def decode_reference(self, rows: Tensor) -> Tensor:
        """As `decode` with a spec, in torch alone."""
        return decode_reference(self.split(rows), self.dtype)


def _compiled(x: Tensor) -> ModuleType:
    """The compiled code for the device of x."""
    return on_gpu if x.device.type in on_gpu.DEVICES else native


def _compact(x: Tensor) -> Tensor:
    """A copy with an aligned start and ordinary strides, which a view in another dtype needs (`contiguous` may not)."""
    return x.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class KvFormat:
    """How a model's keys and values are cached.

    Attributes:
        scheme: gives the bits, the group size and the symmetry.
        keys_only: only the first of the two cached tensors is quantized (multi-head latent attention).
    """

    scheme: Scheme
    keys_only: bool = False

    def keys(self, x: Tensor) -> RowFormat:
        """The row format of keys x [B, H, T, D]."""
        return RowFormat(self.scheme.kv_spec(x.shape[-1]), x.shape[-1], x.dtype)

    def values(self, x: Tensor) -> RowFormat:
        """The row format of values x [B, H, T, D]."""
        return RowFormat(None if self.keys_only else self.scheme.kv_spec(x.shape[-1]), x.shape[-1], x.dtype)

    def __str__(self) -> str:
        name = str(Scheme(kv=self.scheme.kv, kv_group_size=self.scheme.kv_group_size))
        return name + (" (keys only)" if self.keys_only else "")
