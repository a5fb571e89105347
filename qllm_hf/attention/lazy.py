"""Tensors that are packed rows until somebody looks into them.

A cache layer must hand float tensors to the model's own attention code. `LazyRows` is one to all who ask, and is
decoded at the first operation that needs its numbers. A few operations do not: shape and dtype, the repetition of heads
for grouped queries, a slice of tokens, the transposition of keys. And two take the rows as they are: torch's
scaled_dot_product_attention, and the product of queries with keys, or of weights with values, of one or a few tokens.

In a graph that is being compiled they are `TracedRows`: the decoded tensor under another name, which remembers the rows
it was made from. Attention then becomes one operator on rows, and what is left without a user, the compiler drops: all
of the decoding. Whoever does look into them, by whatever way, finds the right numbers there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ordinary import is_ordinary
from ..rotation import rotate
from . import graph
from . import native as kernel
from .registry import DEQUANTIZE, preferred, resolve
from .request import KvRows, Request

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def lazy_pair(keys: KvRows, values: KvRows) -> tuple[Tensor, Tensor]:
    """Keys and values [B, H, T, D]: lazy where attention may take the rows as they are, or else decoded."""
    if not (_may_be_lazy(keys) and _may_be_lazy(values) and preferred() != DEQUANTIZE.name):
        return keys.decode(), values.decode()
    if graph.is_traced():
        return _traced(keys), _traced(values)
    return LazyRows.of(keys), LazyRows.of(values)


def _may_be_lazy(rows: KvRows) -> bool:
    spec = rows.format.spec
    return (
        spec is not None
        and not spec.paper_exact  # its decoding rounds in 16 bits, which no kernel follows
        and rows.format.dtype in _DTYPES
        and (type(rows.rows) is Tensor if graph.is_traced() else is_ordinary(rows.rows))
    )


Stage = Literal["heads", "inserted", "expanded", "turned"]


class LazyRows(Tensor):
    """Keys or values [B, H * repeats, T, D] that are packed rows of H heads; see the head of this module.

    While `repeats` heads are being made of one, it is [B, H, 1, T, D] and then [B, H, repeats, T, D]. Turned, as the
    second factor of scores, it is [B, H * repeats, D, T].
    """

    # of a tensor that lost its own, as after a break of a compiled graph: an ordinary one then
    _source: KvRows | None = None
    _repeats: int = 1
    _stage: Stage = "heads"
    _decoded: Tensor | None = None
    _looked_into: bool = False  # what was decoded may have been changed in place since

    @staticmethod
    def of(source: KvRows, repeats: int = 1, stage: Stage = "heads") -> LazyRows:
        """The lazy form of rows."""
        batch, heads, tokens, _ = source.rows.shape
        sizes = {
            "heads": (batch, heads * repeats, tokens, source.format.length),
            "inserted": (batch, heads, 1, tokens, source.format.length),
            "expanded": (batch, heads, repeats, tokens, source.format.length),
            "turned": (batch, heads * repeats, source.format.length, tokens),
        }
        made: LazyRows = Tensor._make_wrapper_subclass(
            LazyRows, sizes[stage], dtype=source.format.dtype, device=source.rows.device
        )
        made._source, made._repeats, made._stage = source, repeats, stage
        return made

    def decode(self) -> Tensor:
        """The float tensor that this is, decoded once."""
        self._looked_into = True
        if self._decoded is None:
            assert self._source is not None
            self._decoded = _staged(self._source.decode(), self._repeats, self._stage)
        return self._decoded

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        special = _SPECIAL.get(func)
        result = special(*args, **kwargs) if special is not None else NotImplemented
        if result is not NotImplemented:
            return result
        return func(*_decoded(tuple(args)), **_decoded(kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # what calls an operator directly comes here
        return func(*_decoded(tuple(args)), **_decoded(kwargs or {}))


class TracedRows(LazyRows):
    """Lazy rows in a graph that is being compiled: an ordinary tensor, which has been decoded and knows of what."""

    # an ordinary one to all that comes after the trace
    __torch_dispatch__ = Tensor.__torch_dispatch__  # type: ignore[assignment]

    @staticmethod
    def of(source: KvRows, repeats: int = 1, stage: Stage = "heads") -> LazyRows:
        """The traced form of rows."""
        decoded = _staged(source.decode(), repeats, stage)
        made: Any = decoded.as_subclass(TracedRows)
        made._source, made._repeats, made._stage, made._decoded = source, repeats, stage, decoded
        made._looked_into = False
        rows: LazyRows = made
        return rows


@dataclass(frozen=True)
class _DecodedRows(KvRows):
    """Rows and what they mean [B, H, T, D], which is traced once and not for each stage."""

    decoded: Tensor = field(kw_only=True)

    def decode(self) -> Tensor:
        """The vectors [B, H, T, D]."""
        return self.decoded

    def part(self, start: int, stop: int) -> KvRows:
        """The tokens start .. stop - 1."""
        return _DecodedRows(self.rows[:, :, start:stop], self.format, decoded=self.decoded[:, :, start:stop])


def _traced(rows: KvRows) -> LazyRows:
    return TracedRows.of(_DecodedRows(rows.rows, rows.format, rows.used, decoded=rows.decode()))


def _staged(decoded: Tensor, repeats: int, stage: Stage) -> Tensor:
    """What a decoded [B, H, T, D] is at a stage."""
    if stage in ("inserted", "expanded"):
        return decoded[:, :, None].expand(-1, -1, repeats, -1, -1)
    if repeats > 1:
        decoded = decoded.repeat_interleave(repeats, 1)
    return decoded.transpose(2, 3) if stage == "turned" else decoded


def _decoded(value: Any) -> Any:
    if isinstance(value, LazyRows):
        return value.decode()
    if isinstance(value, tuple | list):
        parts = [_decoded(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {key: _decoded(part) for key, part in value.items()}
    return value


def _untouched(x: Any, stage: Stage) -> bool:
    return isinstance(x, LazyRows) and x._source is not None and x._stage == stage and not x._looked_into


def _get(x: Tensor, index: Any) -> Any:
    """x[:, :, None, :, :], and slices of tokens x[:, :, a:b, :]."""
    if not _untouched(x, "heads") or not isinstance(index, tuple) or index[:2] != (slice(None), slice(None)):
        return NotImplemented
    lazy: Any = x
    if index[2:] in ((None,), (None, slice(None), slice(None))) and lazy._repeats == 1:
        return type(lazy).of(lazy._source, 1, "inserted")
    if (
        len(index) in (3, 4)
        and isinstance(index[2], slice)
        and index[2].step in (None, 1)
        and index[3:] in ((), (slice(None),))
    ):
        start, stop, _ = index[2].indices(lazy._source.tokens)
        return type(lazy).of(lazy._source.part(start, max(start, stop)), lazy._repeats)
    return NotImplemented


def _expand(x: Tensor, *sizes: Any) -> Any:
    """[B, H, 1, T, D] -> [B, H, n, T, D]."""
    if not _untouched(x, "inserted"):
        return NotImplemented
    wanted = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    now = tuple(x.shape)
    if len(wanted) != 5 or any(
        a not in (b, -1) for a, b in zip(wanted[:2] + wanted[3:], now[:2] + now[3:], strict=True)
    ):
        return NotImplemented
    lazy: Any = x
    return type(lazy).of(lazy._source, max(wanted[2], 1), "expanded")


def _reshape(x: Tensor, *sizes: Any) -> Any:
    """[B, H, n, T, D] -> [B, H n, T, D]."""
    if not _untouched(x, "expanded"):
        return NotImplemented
    wanted = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    lazy: Any = x
    batch, heads, count, tokens, length = x.shape
    if wanted != (batch, heads * count, tokens, length):
        return NotImplemented
    return type(lazy).of(lazy._source, count)


def _to(x: Tensor, *arguments: Any, **options: Any) -> Any:
    """Nothing, to the dtype that it has."""
    return x if not options and arguments == (x.dtype,) else NotImplemented


def _transpose(x: Tensor, first: int, second: int) -> Any:
    """[B, H, T, D] -> [B, H, D, T]."""
    if not _untouched(x, "heads") or {first % 4, second % 4} != {2, 3}:
        return NotImplemented
    lazy: Any = x
    return type(lazy).of(lazy._source, lazy._repeats, "turned")


def _product(x: Any, rows: Any) -> Any:
    """Queries [B, Hq, Tq, D] times turned keys, weights [B, Hq, Tq, T] times values."""
    turned = _untouched(rows, "turned")
    if not (turned or _untouched(rows, "heads")) or graph.is_traced() or preferred() not in (None, "kernel"):
        return NotImplemented
    if type(x) is not Tensor or x.dim() != 4 or not x.numel():
        return NotImplemented
    if rows.shape[1] not in (1, x.shape[1]) or (x.shape[0], x.shape[3]) != (rows.shape[0], rows.shape[2]):
        return NotImplemented
    if kernel.refuses_half(x, rows._source) is not None:
        return NotImplemented
    stored, is_rotated = rows._source.as_stored(), rows._source.format.rotated
    if turned:
        return kernel.scores(rotate(x) if is_rotated else x, stored)
    found = kernel.weighted(x, stored)
    return rotate(found) if is_rotated else found


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """torch's scaled_dot_product_attention."""
    if isinstance(query, LazyRows) or not _untouched(key, "heads") or not _untouched(value, "heads"):
        return NotImplemented
    keys, values = key._source, value._source  # type: ignore[attr-defined]
    repeats = key._repeats  # type: ignore[attr-defined]
    batch, heads, tokens, _ = keys.rows.shape
    if query.dim() != 4 or query.shape[0] != batch or query.shape[1] % heads or not query.shape[2] or not tokens:
        return NotImplemented
    group = query.shape[1] // heads
    grouped = (repeats == group) or (repeats == 1 and (enable_gqa or heads == 1))
    same = values.rows.shape[:3] == keys.rows.shape[:3] and value._repeats == repeats  # type: ignore[attr-defined]
    fits = query.dtype == keys.format.dtype == values.format.dtype and query.shape[-1] == keys.format.length
    if not (grouped and same and fits) or dropout_p or query.device != keys.rows.device:
        return NotImplemented
    if attn_mask is not None and (is_causal or attn_mask.dim() != 4 or type(attn_mask) is not Tensor):
        return NotImplemented
    if torch.is_grad_enabled() and (query.requires_grad or (attn_mask is not None and attn_mask.requires_grad)):
        return NotImplemented
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    request = Request(query, keys, values, attn_mask, is_causal, scale)
    if graph.is_traced():
        return graph.attention(request.as_stored()) if graph.takes(request) else NotImplemented
    chosen = resolve(request).chosen
    # decoded, what was asked for itself runs: with its own numbers
    return NotImplemented if chosen is DEQUANTIZE else chosen.run(request.as_stored())


_METADATA: frozenset[Any] = frozenset(
    {
        *(
            getattr(Tensor, name).__get__
            for name in ("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_cuda")
        ),
        *(getattr(Tensor, name) for name in ("size", "dim", "numel", "is_floating_point", "element_size", "__len__")),
        torch.is_floating_point,
        torch.numel,
    }
)
_SPECIAL: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: _get,
    Tensor.expand: _expand,
    Tensor.reshape: _reshape,
    Tensor.to: _to,
    Tensor.transpose: _transpose,
    torch.transpose: _transpose,
    torch.matmul: _product,
    Tensor.matmul: _product,
    Tensor.__matmul__: _product,
    F.scaled_dot_product_attention: _attention,
}
