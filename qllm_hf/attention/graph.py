"""Attention inside a graph that is being compiled: one opaque operator, whatever implementation runs behind it.

Whether the operator is called is decided when the graph is made, on constants alone: the kind of tensors and rows.
Which implementation runs is decided each time the operator does, on the tensors themselves, as outside of graphs.
"""

from __future__ import annotations

import torch
from packaging.version import Version
from torch import Tensor

from ..kv_rows import RowFormat
from ..scheme import Spec
from .registry import attend, preferred, takes_kind
from .request import KvRows, Request

# Queries of one key head. With more, as in a prompt, to decode once costs less than it does to compute.
MOST_QUERIES = 128

IS_TRACEABLE = Version(torch.__version__).release >= (2, 13)
"""Whether graphs of this torch may hold lazy rows. How subclasses of Tensor are traced is no stable part of torch, and
older releases were not tried: their graphs decode."""


def is_traced() -> bool:
    """Whether this is being traced into a graph that may hold lazy rows."""
    return IS_TRACEABLE and torch.compiler.is_dynamo_compiling()


def takes(request: Request) -> bool:
    """Whether the graph gets the operator for a request, and not what decodes and attends."""
    query, keys, values, mask = request.query, request.keys, request.values, request.mask
    count = query.shape[2]
    if request.group * count > MOST_QUERIES or keys.tokens <= count:
        return False
    key_spec, value_spec = keys.format.spec, values.format.spec
    assert key_spec is not None
    assert value_spec is not None
    is_taken: bool = _is_taken(
        query.device.type,
        query.dtype,
        request.group,
        (key_spec.bits, key_spec.group_size, key_spec.symmetric),
        keys.format.length,
        (value_spec.bits, value_spec.group_size, value_spec.symmetric),
        values.format.length,
        None if mask is None else mask.dtype,
        preferred(),
    )
    return is_taken


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_taken(
    device: str,
    dtype: torch.dtype,
    group: int,
    key_spec: tuple[int, int, bool],
    key_length: int,
    value_spec: tuple[int, int, bool],
    value_length: int,
    mask: torch.dtype | None,
    wanted: str | None,
) -> bool:
    """Whether an implementation other than decoding takes one query of this kind over a history of two tokens."""
    keys, values = (
        KvRows(torch.zeros(1, 1, 2, form.words, dtype=torch.int16, device=device), form)
        for form in (RowFormat(Spec(*key_spec), key_length, dtype), RowFormat(Spec(*value_spec), value_length, dtype))
    )
    query = torch.zeros(1, group, 1, key_length, dtype=dtype, device=device)
    seen = None if mask is None else torch.zeros(1, 1, 1, 2, dtype=mask, device=device)
    return takes_kind(Request(query, keys, values, seen, False, 1.0), wanted)


def attention(request: Request) -> Tensor:
    """The attention that a request means: [B, Hq, Tq, Dv] in the dtype of the query, by a call of the operator."""
    keys, values = request.keys.format, request.values.format
    assert keys.spec is not None
    assert values.spec is not None
    result: Tensor = _opaque(
        request.query,
        request.keys.rows,
        request.values.rows,
        request.mask,
        request.used,
        [keys.spec.bits, keys.spec.group_size, keys.length],
        [values.spec.bits, values.spec.group_size, values.length],
        keys.spec.symmetric,
        values.spec.symmetric,
        request.causal,
        request.scale,
    )
    return result


@torch.library.custom_op("qllm_hf::attention", mutates_args=())
def _opaque(
    query: Tensor,
    key_rows: Tensor,
    value_rows: Tensor,
    mask: Tensor | None,
    used: Tensor | None,
    key_format: list[int],
    value_format: list[int],
    keys_symmetric: bool,
    values_symmetric: bool,
    causal: bool,
    scale: float,
) -> Tensor:
    keys = _rows(key_rows, used, key_format, keys_symmetric, query.dtype)
    values = _rows(value_rows, used, value_format, values_symmetric, query.dtype)
    request = Request(query, keys, values, mask, causal, scale)
    return attend(request).contiguous()


@_opaque.register_fake
def _(query: Tensor, key_rows: Tensor, value_rows: Tensor, mask: object, used: object, *rest: list[int]) -> Tensor:
    (_, _, value_length), *_ = rest[1:]
    return query.new_empty((*query.shape[:-1], value_length))


def _rows(rows: Tensor, used: Tensor | None, numbers: list[int], symmetric: bool, dtype: torch.dtype) -> KvRows:
    bits, group_size, length = numbers
    return KvRows(rows, RowFormat(Spec(bits, group_size, symmetric), length, dtype), used)
