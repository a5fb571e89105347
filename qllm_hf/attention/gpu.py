"""Attention over packed rows on GPUs: the Triton kernels of `qllm_kernels.gpu.attention`."""

from __future__ import annotations

import functools
import importlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qllm_kernels import gpu

from ..on_gpu import TRIALS
from ..ordinary import is_ordinary
from ..trials import difference
from . import reference
from .request import KvRows, Request

INTERPRETED = gpu.INTERPRETED


def refuses(request: Request) -> str | None:
    """Why the kernels cannot take a request, or None."""
    return _refuses_tensors(request) or refuses_kind(request)


def refuses_kind(request: Request) -> str | None:
    """Why they cannot take a request like this, or None, whatever else there is to say of these very tensors."""
    return "is for tensors on a GPU" if request.query.device.type != "cuda" else _refuses(request)


def refuses_interpreter(request: Request) -> str | None:
    """Why the kernels cannot take a request on the CPU, in Triton's interpreter, or None."""
    return _refuses_tensors(request) or refuses_interpreted_kind(request)


def refuses_interpreted_kind(request: Request) -> str | None:
    """As `refuses_kind`, in Triton's interpreter."""
    is_here = request.query.device.type == "cpu"
    return _refuses(request) if is_here else "runs kernels for GPUs on the CPU, to test them"


def _refuses_tensors(request: Request) -> str | None:
    tensors = request.query, request.keys.rows, request.values.rows
    return None if all(is_ordinary(x) for x in tensors) else "it takes ordinary tensors, outside of graphs"


def _refuses(request: Request) -> str | None:
    missing = gpu.missing()
    if missing is not None:
        return missing
    query, keys, values = request.query, request.keys, request.values
    if keys.tokens == query.shape[2]:
        return "there is no history: the prompt alone is computed as without a cache"
    specs = keys.format.spec, values.format.spec
    if specs[0] is None or specs[1] is None or specs[0].paper_exact or specs[0].symmetric != specs[1].symmetric:
        return "keys or values are not quantized, not alike, or have paper_exact=True"
    if keys.format.dtype != query.dtype or values.format.dtype != query.dtype:
        return "queries, keys and values are of one type"
    reason: str | None = _kernels().refuses(query, keys.rows, values.rows, mask=request.mask, **_format(request))
    return reason


def attend(request: Request) -> Tensor:
    """The attention that a request means: [B, Hq, Tq, Dv] in the dtype of the query."""
    return TRIALS.run(
        _kind(request),
        lambda: _attend(request),
        lambda found: _fault(found, request),
        lambda: reference.attend(request),
    )


def _kind(request: Request) -> tuple[object, ...]:
    batch, heads, tokens, _ = request.keys.rows.shape
    mask = request.mask
    seen = None if mask is None else (mask.dtype, *(size > 1 for size in mask.shape))
    return (
        "attention", request.keys.format, request.values.format, request.query.shape[1:], seen, request.causal,
        request.softcap is None, request.sinks is None, request.used is None,
        heads, batch.bit_length(), tokens.bit_length(),
    )  # fmt: skip


def _fault(found: Tensor, request: Request) -> str | None:
    """What is wrong with the result for the first or the last head, or None: the history of one is little to decode."""
    batch, heads = request.keys.rows.shape[:2]
    for sequence, head in {(0, 0), (batch - 1, heads - 1)}:
        part = _of_head(request, sequence, head)
        mine = found[sequence : sequence + 1, head * request.group : (head + 1) * request.group]
        wanted = reference.attend(part)
        if part.mask is not None:  # what sees nothing is 0 here, and anything in torch
            seen = part.mask if part.mask.dtype == torch.bool else part.mask > -torch.inf
            mine, wanted = (x.masked_fill(~seen.any(-1, keepdim=True), 0.0) for x in (mine, wanted))
        wrong = difference(mine, wanted)
        if wrong is not None:
            return wrong
    return None


def _of_head(request: Request, sequence: int, head: int) -> Request:
    """The part of a request that is of one key head of one sequence."""
    one, of_head = slice(sequence, sequence + 1), slice(head * request.group, (head + 1) * request.group)
    tokens = request.keys.tokens if request.used is None else int(request.used)
    mask, sinks = request.mask, request.sinks
    if mask is not None:
        mask = mask.expand(*request.query.shape[:3], request.keys.tokens)[one, of_head, :, :tokens]
    keys, values = (
        KvRows(rows.rows[one, head : head + 1, :tokens], rows.format) for rows in (request.keys, request.values)
    )
    return replace(
        request, query=request.query[one, of_head], keys=keys, values=values, mask=mask,
        sinks=None if sinks is None else sinks[of_head],
    )  # fmt: skip


def _attend(request: Request) -> Tensor:
    out: Tensor = _kernels().attend(
        request.query,
        request.keys.rows,
        request.values.rows,
        **_format(request),
        scale=request.scale,
        mask=request.mask,
        causal=request.causal,
        softcap=request.softcap,
        sinks=request.sinks,
        tokens=request.used,
    )
    return out


def _format(request: Request) -> dict[str, Any]:
    keys, values = request.keys.format.spec, request.values.format.spec
    assert keys is not None
    assert values is not None
    return {
        "key_bits": keys.bits,
        "value_bits": values.bits,
        "group_size": keys.group_size,
        "value_group_size": values.group_size,
        "symmetric": keys.symmetric,
        "value_dim": request.values.format.length,
    }


@functools.cache
def _kernels() -> Any:
    # only here, since they need Triton
    return importlib.import_module("qllm_kernels.gpu.attention")
