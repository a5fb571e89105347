"""Keys and values as rows: everything about one token and head in one run of 16-bit words.

A vector of keys [.., D] becomes a row of int16 words [.., R]:

    | packed codes: row_words(D, bits) | scales: 1 word per group (2 in float32) | zero points: 1 byte per group |

rounded up to a whole word. One tensor [B, H, T, R] then stands for the keys of a layer, and all that a
cache does with tokens and sequences (append, crop, reorder, repeat, roll, offload) is the same operation
on rows as it was on vectors. Each token is quantized once, when it is written, and nothing it meets
later changes it.

Keys may be turned before they are quantized (`qllm_hf.rotation`). Then the rows stand for turned vectors, and `decode`
turns them back; whoever multiplies them reads them as they are (`as_stored`) and turns the other factor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native, on_gpu
from .layout import group_count, row_words
from .packed import PackedTensor, decode_reference, encode_reference
from .packing import WORD
from .rotation import rotate, rotation_size
from .scheme import Scheme, Spec
from .trials import difference, distance, ends
from .uniform import fake_quantize


@dataclass(frozen=True)
class RowFormat:
    """How vectors [.., length] of a dtype become rows. With spec None the words are the float bits themselves."""

    spec: Spec | None
    length: int
    dtype: torch.dtype
    rotated: bool = False

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

    def as_stored(self) -> RowFormat:
        """The format that takes rows for the vectors that were quantized, turned or not."""
        return replace(self, rotated=False) if self.rotated else self

    def encode(self, x: Tensor) -> Tensor:
        """Rows int16 [.., words] of x [.., length]."""
        return _compact(x).view(WORD) if self.spec is None else self._encode(x, None)

    def encode_into(self, x: Tensor, rows: Tensor) -> None:
        """Write the rows of x [.., length] to `rows` int16 [.., words], which may be a part of a larger tensor."""
        if self.spec is None:
            rows.copy_(self.encode(x))
        else:
            self._encode(x, rows)

    def _encode(self, x: Tensor, rows: Tensor | None) -> Tensor:
        spec, turned = self.spec, rotate(x) if self.rotated else x
        assert spec is not None

        def plain() -> Tensor:
            made = self.as_stored().encode_reference(turned)
            return made if rows is None else rows.copy_(made)

        if x.dtype != self.dtype or x.shape[-1] != self.length:
            return plain()
        if on_gpu.is_for(x):
            stored = self.as_stored()
            return on_gpu.TRIALS.run(
                ("packing of rows", stored),
                lambda: on_gpu.encode_rows(turned, spec, self.words, rows),
                lambda found: distance(
                    stored.decode_reference(ends(found)),
                    stored.decode_reference(stored.encode_reference(ends(turned))),
                ),
                plain,
            )
        found = native.encode_rows(turned, spec, self.words, rows)
        return plain() if found is None else found

    def encode_reference(self, x: Tensor) -> Tensor:
        """As `encode` with a spec, in torch alone: for all that the kernels do not take, and to compare them with."""
        assert self.spec is not None
        packed = encode_reference(rotate(x) if self.rotated else x, self.spec)
        parts = [packed.words, _compact(packed.scale).view(WORD)]
        if packed.zero_point is not None:
            groups = packed.zero_point.shape[-1]
            parts.append(_compact(F.pad(packed.zero_point, (0, groups % 2))).view(WORD))
        return torch.cat(parts, -1)

    def simulate(self, x: Tensor) -> Tensor:
        """What `decode(encode(x))` gives with a spec, without rows in between."""
        assert self.spec is not None
        rounded = fake_quantize(rotate(x) if self.rotated else x, self.spec)
        return rotate(rounded) if self.rotated else rounded

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
        spec = self.spec
        if spec is None:
            return _compact(rows).view(self.dtype)
        stored = self.as_stored()
        if on_gpu.is_for(rows):
            x = on_gpu.TRIALS.run(
                ("unpacking of rows", stored),
                lambda: on_gpu.decode_rows(rows, spec, self.length, self.dtype),
                lambda found: difference(ends(found), stored.decode_reference(ends(rows))),
                lambda: stored.decode_reference(rows),
            )
        else:
            found = native.decode_rows(rows, spec, self.length, self.dtype)
            x = stored.decode_reference(rows) if found is None else found
        return rotate(x) if self.rotated else x

    def decode_reference(self, rows: Tensor) -> Tensor:
        """As `decode` with a spec, in torch alone."""
        found = decode_reference(self.split(rows), self.dtype)
        return rotate(found) if self.rotated else found


def _compact(x: Tensor) -> Tensor:
    """A copy with an aligned start and ordinary strides, which a view in another dtype needs (`contiguous` may not)."""
    return x.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class KvFormat:
    """How a model's keys and values are cached.

    Attributes:
        scheme: gives the bits, the group size and the symmetry, and whether keys are turned.
        keys_only: only the first of the two cached tensors is quantized (multi-head latent attention).
    """

    scheme: Scheme
    keys_only: bool = False

    def keys(self, x: Tensor) -> RowFormat:
        """The row format of keys x [B, H, T, D]."""
        rotated = self.scheme.kv_rotate_keys and rotation_size(x.shape[-1]) > 1
        return RowFormat(self.scheme.kv_spec(x.shape[-1]), x.shape[-1], x.dtype, rotated)

    def values(self, x: Tensor) -> RowFormat:
        """The row format of values x [B, H, T, D]."""
        return RowFormat(None if self.keys_only else self.scheme.kv_spec(x.shape[-1]), x.shape[-1], x.dtype)

    def __str__(self) -> str:
        name = str(Scheme(kv=self.scheme.kv, kv_group_size=self.scheme.kv_group_size))
        return name + (" (keys only)" if self.keys_only else "") + (" (turned)" if self.scheme.kv_rotate_keys else "")
