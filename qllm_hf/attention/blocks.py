"""Many queries at once (a prompt, or a part of it): keys and values are decoded some tokens at a time.

Each part of the keys gives its attention and the logarithm of its sum of exponentials; two parts a and b together are

    out = (exp(la) out_a + exp(lb) out_b) / (exp(la) + exp(lb))

so that a history of any length needs decoded floats for one part only. Within a part the work is torch's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import repeated
from .request import Request

# Tokens of keys at a time; up to so many are decoded at once by the reference, and give its very numbers.
PART = 2048


def refuses(request: Request) -> str | None:
    """Why this implementation cannot take a request, or None."""
    if request.query.device.type != "cpu":
        return "parts are joined by an operation of torch's CPU backend"
    if request.keys.tokens <= PART:
        return f"{PART} tokens or fewer are decoded at once"
    if request.softcap is not None or request.sinks is not None:
        return "torch's attention has no soft cap and no sinks"
    if request.query.shape[-1] != request.values.format.length:
        return "torch's attention on a CPU takes keys and values of one width"
    return None


def attend(request: Request) -> Tensor:
    """The attention that a request means: [B, Hq, Tq, Dv] in the dtype of the query."""
    query, tokens = request.query, request.keys.tokens
    batch, heads, count, _ = query.shape
    out = torch.zeros(*query.shape[:-1], request.values.format.length, dtype=torch.float32)
    logsum = torch.full((batch, heads, count, 1), -torch.inf)
    for start in range(0, tokens, PART):
        stop = min(start + PART, tokens)
        if request.causal and start >= count:
            break
        keys, values = (
            repeated(rows.part(start, stop).decode(), request.group) for rows in (request.keys, request.values)
        )
        mask = None if request.mask is None else _columns(request.mask, start, stop)
        if not request.causal:
            _join(out, logsum, *_part(query, keys, values, mask, False, request.scale))
            continue
        # queries before this part do not see it, those within it see a triangle, those after it all of it
        for first, last, causal in ((start, min(stop, count), True), (stop, count, False)):
            if first < last:
                rows = slice(first, last)
                seen = keys[:, :, : last - start], values[:, :, : last - start]
                part = _part(
                    query[:, :, rows], *seen, None if mask is None else mask[..., rows, :], causal, request.scale
                )
                _join(out[:, :, rows], logsum[:, :, rows], *part)
    return out.to(query.dtype)


def _columns(mask: Tensor, start: int, stop: int) -> Tensor:
    return mask if mask.shape[-1] == 1 else mask[..., start:stop]


def _part(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention within one part, float32, and the logarithm of its sum of exponentials [B, Hq, Tq, 1]."""
    nothing = None
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
        mask = mask.to(query.dtype).expand(
            query.shape[0], -1 if mask.shape[1] > 1 else 1, query.shape[2], keys.shape[2]
        )
        nothing = (mask == -torch.inf).all(-1, keepdim=True)
    out, logsum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query.contiguous(), keys, values, 0.0, causal, attn_mask=mask, scale=scale
    )
    logsum = logsum.unsqueeze(-1).float()
    # torch reports 0 for a query that sees nothing
    return out.float(), logsum if nothing is None else logsum.masked_fill(nothing, -torch.inf)


def _join(out: Tensor, logsum: Tensor, part: Tensor, part_logsum: Tensor) -> None:
    """Puts one more part into `out` and `logsum`, in place. A part in which a query sees nothing has no weight."""
    together = torch.logaddexp(logsum, part_logsum)
    shown = together.masked_fill(together == -torch.inf, 0.0)
    out.mul_(torch.exp(logsum - shown)).add_(part * torch.exp(part_logsum - shown))
    logsum.copy_(together)
