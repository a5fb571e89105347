"""The C++ kernel: rows are read as they are, once for all queries of their head. See kernels/cpu/attention.h.

Scales act on products of integers, so keys and values are not rounded to 16 bits in between, as decoding does.

`attend` is attention as a whole. A model that has code of its own for what comes between the two products (a soft cap,
sinks, the slopes of ALiBi) gets them one by one: `scores`, and `weighted`.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import native
from ..ordinary import is_plain
from .request import KvRows, Request

# Queries of one key head: what is kept for each of them should not leave the processor's cache.
MOST_QUERIES = 512


def refuses(request: Request) -> str | None:
    """Why this implementation cannot take a request, or None."""
    if request.mask is not None and not is_plain(request.mask):
        return _ORDINARY
    return (
        _refuses_mask(request)
        or refuses_half(request.query, request.keys)
        or refuses_half(request.query, request.values)
    )


def refuses_kind(request: Request) -> str | None:
    """Why it cannot take a request like this, or None, whatever else there is to say of these very tensors."""
    if request.query.device.type != "cpu":
        return _ORDINARY
    query, keys, values = request.query, request.keys, request.values
    return _refuses_mask(request) or _refuses_rows(query, keys) or _refuses_rows(query, values)


def refuses_half(x: Tensor, rows: KvRows) -> str | None:
    """Why x [B, Hq, Tq, n] cannot be multiplied with these rows, or None."""
    return _refuses_rows(x, rows) if is_plain(x) and is_plain(rows.rows) else _ORDINARY


_ORDINARY = "it takes ordinary tensors on a CPU, outside of graphs"


def _refuses_mask(request: Request) -> str | None:
    mask = request.mask
    if mask is not None and (mask.dtype not in native.TYPES and mask.dtype != torch.bool):
        return "a mask is of flags or of float32, bfloat16 or float16"
    return None


def _refuses_rows(x: Tensor, rows: KvRows) -> str | None:
    if not native.is_there():
        return "the library of CPU kernels is not there"
    if x.dtype not in native.TYPES or rows.format.dtype != x.dtype:
        return "queries, keys and values are of one type: float32, bfloat16 or float16"
    if rows.tokens == x.shape[2]:
        return "there is no history: the prompt alone is computed as without a cache"
    if x.shape[1] // rows.rows.shape[1] * x.shape[2] > MOST_QUERIES:
        return f"more than {MOST_QUERIES} queries of one key head"
    spec = rows.format.spec
    if spec is None or spec.paper_exact or not _kernel().fits(rows.format.length, spec.group_size):
        return "keys or values are not quantized, have paper_exact=True, are too long or have too many groups"
    return None


def attend(request: Request) -> Tensor:
    """The attention that a request means: [B, Hq, Tq, Dv] in the dtype of the query."""
    return _call(_kernel().WHOLE, _without_room(request), request.values.format.length)


def _without_room(request: Request) -> Request:
    """The same attention, to the tokens that there are."""
    mask, used = request.mask, request.used
    if mask is None or used is None:
        return request
    count = int(used)
    keys, values = request.keys.part(0, count), request.values.part(0, count)
    return replace(request, keys=keys, values=values, mask=mask if mask.shape[-1] == 1 else mask[..., :count])


def scores(query: Tensor, keys: KvRows) -> Tensor:
    """The products of queries [B, Hq, Tq, D] with keys [B, H, T, D]: [B, Hq, Tq, T] in the dtype of the queries."""
    return _call(_kernel().SCORES, Request(query, keys, keys, None, False, 1.0), keys.tokens)


def weighted(weights: Tensor, values: KvRows) -> Tensor:
    """The sums of values [B, H, T, Dv] with weights [B, Hq, Tq, T]: [B, Hq, Tq, Dv] in the dtype of the weights."""
    return _call(_kernel().VALUES, Request(weights, values, values, None, False, 1.0), values.format.length)


def _call(part: int, request: Request, width: int) -> Tensor:
    query, mask, kernel = request.query, request.mask, _kernel()
    if query.stride(-1) != 1:
        query = query.contiguous()
    batch, heads, count, _ = query.shape
    out = query.new_empty(batch, heads, count, width)
    mask_strides: tuple[int, ...] = (0, 0, 0)
    mask_kind = 0
    if mask is not None:
        mask = mask.expand(batch, heads, count, request.keys.tokens)
        if mask.stride(-1) != 1:
            mask = mask.contiguous()
        mask_strides = mask.stride()[:3]
        mask_kind = kernel.BOOL if mask.dtype == torch.bool else native.TYPES[mask.dtype]
    sinks = None if request.sinks is None else request.sinks.detach().float().contiguous()
    described = kernel.request(
        query.data_ptr(),
        out.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        0 if sinks is None else sinks.data_ptr(),
        (batch, request.keys.rows.shape[1], request.group, count, request.keys.tokens),
        query.stride()[:3],
        mask_strides,
        request.scale,
        request.softcap or 0.0,
        native.TYPES[query.dtype],
        mask_kind,
        request.causal,
        part,
    )
    kernel.check(kernel.function()(described, _rows(request.keys), _rows(request.values), torch.get_num_threads()))
    return out


def _rows(rows: KvRows) -> bytes:
    spec, tensor = rows.format.spec, rows.rows
    assert spec is not None
    assert tensor.stride(-1) == 1
    batch, head, token, _ = tensor.stride()
    size = tensor.element_size()
    described: bytes = _kernel().rows(
        tensor.data_ptr(),
        (batch * size, head * size, token * size),
        rows.format.length,
        max(spec.group_size, 0),
        spec.bits,
        native.TYPES[rows.format.dtype],
        spec.symmetric,
    )
    return described


@functools.cache
def _kernel() -> Any:
    # after `..native`, which finds the package in a source tree
    return importlib.import_module("qllm_kernels.attention")
