"""Attention over packed keys and values, by every implementation that there is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from attention_reference import decoded, exact
from torch import Tensor

from qllm_hf.attention import ATTENTION, KvRows, Request, gpu, native
from qllm_hf.attention.reference import repeated
from qllm_hf.kv_rows import RowFormat
from qllm_hf.scheme import Spec

from .outcome import VANISHING, Outcome, at, compare, levels
from .values import DTYPES, FINITE, VALUES, draw

HEAD_DIMS = (1, 3, 8, 40, 64, 72, 80, 96, 128, 256)
SMALLEST = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-22}
MASKS = ("none", "none", "flags", "padding", "nothing seen", "numbers", "triangle")


def _mask(kind: str, batch: int, count: int, tokens: int, dtype: torch.dtype) -> Tensor | None:
    if kind in ("none", "triangle"):
        return None
    mask = torch.rand(batch, 1, count, tokens) > 0.3
    if kind == "padding":
        mask = (torch.arange(tokens) >= torch.randint(tokens, (batch, 1, 1, 1))).expand(batch, 1, count, tokens)
    if kind == "nothing seen":
        mask = mask.clone()
        mask[-1] = False
    if kind == "numbers":  # as transformers writes what is not seen
        return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return mask


def _request(source: random.Random) -> Request:
    dim, dtype = source.choice(HEAD_DIMS), source.choice(DTYPES)
    tokens, heads, group, batch = source.choice((1, 2, 16, 17, 64, 70, 129)), 2, source.choice((1, 3)), 2
    count = source.choice((1, 1, 2, 5))
    count = min(count, tokens)
    sizes = [size for size in range(1, dim + 1) if dim % size == 0]
    symmetric = source.random() < 0.4
    rows = []
    for _ in range(2):
        x = draw(source.choice(list(VALUES)), (batch, heads, tokens, dim), dtype)
        form = RowFormat(Spec(source.randint(2, 8), source.choice((*sizes, -1)), symmetric), dim, dtype)
        rows.append(KvRows(form.encode(x), form))
    query = draw(source.choice(list(FINITE)), (batch, heads * group, count, dim), dtype)
    kind = source.choice(MASKS)
    mask = _mask(kind, batch, count, tokens, dtype)
    return Request(query, *rows, mask, kind == "triangle", dim**-0.5)


class Limits(NamedTuple):
    """What attention [B, Hq, Tq, D] may be.

    Attributes:
        tolerance: how far it may be off.
        size: what codes of its values can mean at most.
        spoiled: which results must not be finite, since they see NaN.
        unsure: which may be either: there is an infinite key, whose weight is all or nothing, or a NaN that they do not
            see (a weight of 0 times NaN is NaN); or float32 goes beyond its end on the way.
    """

    tolerance: Tensor
    size: Tensor
    spoiled: Tensor
    unsure: Tensor


def _limits(request: Request, result: Tensor) -> Limits:
    """How far attention may be off, and which results must not be finite.

    Scores are rounded in proportion to the sum of the magnitudes of their products; what that is worth in weights is
    its exponential. With scores that are far apart, or so large that a rounding of them is much, hardly anything
    follows: then a result only has to lie within the values.
    """
    unit = SMALLEST[request.query.dtype]
    keys, values = (repeated(decoded(rows), request.group) for rows in (request.keys, request.values))
    size = request.query.double().abs() @ keys.nan_to_num(0, 0, 0).abs().transpose(-1, -2) * abs(request.scale)
    # queries and weights become integers in proportion to the largest in a group
    off = 8 * unit * torch.maximum(size.amax(-1, keepdim=True), _most(request.query, request.keys, request))
    reach = repeated(_reach(request.values), request.group).amax(-2, keepdim=True)
    seen = _seen(request, keys.shape[-2])
    no_number = keys.isnan().any(-1)[:, :, None]
    spoiled = (seen & no_number).any(-1, keepdim=True) | (seen.double() @ values.isnan().double() > 0)
    infinite = (keys.isinf().any(-1) | values.isinf().any(-1)).any(-1)[..., None, None]
    unseen = (~seen & (no_number | values.isnan().any(-1)[:, :, None])).any(-1, keepdim=True)
    limit = torch.finfo(request.query.dtype)
    tolerance = reach * (2 * torch.expm1(off.clamp(max=1.0)) + 6 * unit) + limit.smallest_normal * 2
    if not all(bool((rows.decode().isinf() <= decoded(rows).isinf()).all()) for rows in (request.keys, request.values)):
        infinite = torch.ones_like(infinite)  # what the dtype cannot express is infinite, if it is decoded
    unsure = infinite | (unseen & ~spoiled) | (reach * keys.shape[-2] > 1e38) | (off > 1e30)
    tolerance = tolerance.masked_fill(infinite, torch.inf)
    return Limits(*(part.expand(result.shape) for part in (tolerance, reach, spoiled, unsure)))


def _reach(rows: KvRows) -> Tensor:
    """What the codes of each group can mean at most, by element: [B, H, T, D] in float64."""
    spec = rows.format.spec
    size = spec.group_size if spec.group_size > 0 else rows.format.length
    scale = rows.format.split(rows.rows).scale.double().abs().nan_to_num(0, 0, 0)
    return scale[..., torch.arange(rows.format.length) // size] * 2**spec.bits


def _most(query: Tensor, keys: KvRows, request: Request) -> Tensor:
    largest = (query.double().abs().amax(-1, keepdim=True) + VANISHING / SMALLEST[query.dtype]) * keys.format.length
    reach = repeated(_reach(keys), request.group).amax((-1, -2))[..., None, None]
    return largest * reach * abs(request.scale)


def _seen(request: Request, tokens: int) -> Tensor:
    shape = (*request.query.shape[:3], tokens)
    mask = request.mask
    if request.causal:
        return torch.ones(shape[2:], dtype=torch.bool).tril().expand(shape)
    if mask is None:
        return torch.ones(shape, dtype=torch.bool)
    return (mask if mask.dtype == torch.bool else mask > -1e4).expand(shape)


def attention(source: random.Random) -> Iterator[Outcome]:
    """One request, by each implementation in the table of the package that takes it."""
    request = _request(source)
    wanted = exact(request)
    limits = _limits(request, wanted)
    sees = _seen(request, request.keys.tokens).any(-1, keepdim=True).expand(wanted.shape)
    # torch's own attention gives 0 on a CPU where all keys are NaN, as it does where no key is seen
    bad = repeated(decoded(request.keys), request.group).isnan().any(-1)[:, :, None]
    nothing_else = (bad | ~_seen(request, request.keys.tokens)).all(-1, keepdim=True).expand(wanted.shape)
    for row in ATTENTION:
        if row.refuses(request) is not None:
            continue
        for level in levels() if row.name == "kernel" else ("",):
            if level:
                with at(level):
                    y = row.run(request)
            else:  # kernels for GPUs without their trial, which would put torch's result in the place of a wrong one
                y = gpu._attend(request) if row.name == "interpreter" else row.run(request)
            # what sees nothing is 0, or what torch makes of it
            judged, name = y.masked_fill(~sees, 0.0), f"{row.name} {level}".strip()
            unsure = limits.unsure | (nothing_else if row.name != "kernel" else torch.zeros_like(nothing_else))
            spoiled = (limits.spoiled & sees & ~unsure) | (unsure & ~judged.isfinite())
            yield compare(name, judged, wanted.masked_fill(~sees, 0.0), limits.tolerance, limits.size, spoiled)
            flags = request.mask is None or request.mask.dtype == torch.bool
            if row.name == "kernel" and flags and not bool(y.masked_fill(sees, 0.0).eq(0).all()):
                yield Outcome(name, 0, 0, "a query that sees nothing does not get zeros")


def halves(source: random.Random) -> Iterator[Outcome]:
    """The two products of attention one by one, as models with a softmax of their own take them."""
    request = replace(_request(source), mask=None, causal=False)
    keys, values = (repeated(decoded(rows), request.group) for rows in (request.keys, request.values))
    weights = torch.softmax(torch.randn(*request.query.shape[:3], request.keys.tokens), -1).to(request.query.dtype)
    for x, rows, factor, run in (
        (request.query, request.keys, keys.transpose(-1, -2), native.scores),
        (weights, request.values, values, native.weighted),
    ):
        if native.refuses_half(x, rows) is not None:
            continue
        wanted = x.double() @ factor
        size = x.double().abs() @ factor.abs().nan_to_num(0, 0, 0)
        spoiled = ~(x.double().abs() @ factor.abs()).isfinite()
        reach = repeated(_reach(rows), request.group)
        reach = reach.amax(-1)[..., None, :] if run is native.scores else reach.amax(-2, keepdim=True)
        # x becomes integers in proportion to the largest of its products with a scale
        apart = x.double().abs().amax(-1, keepdim=True) * reach * x.shape[-1]
        tolerance = (
            apart * 2 * SMALLEST[x.dtype] + torch.finfo(x.dtype).smallest_normal + VANISHING * reach * x.shape[-1]
        )
        unsure = apart > 1e38
        for level in levels():
            with at(level):
                y = run(x, rows)
            yield compare(f"halves {level}", y, wanted, tolerance, size, spoiled | (unsure & ~y.isfinite()))
