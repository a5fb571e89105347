"""The reference: decode all rows, then attention as torch has it. Every other implementation is compared with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .request import Request


def attend(request: Request) -> Tensor:
    """The attention that a request means: [B, Hq, Tq, Dv] in the dtype of the query."""
    query, mask = request.query, request.mask
    keys, values = (repeated(rows.decode(), request.group) for rows in (request.keys, request.values))
    if request.softcap is None and request.sinks is None:
        return F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=request.causal, scale=request.scale
        )
    scores = (query.float() @ keys.float().transpose(-1, -2)) * request.scale
    if request.softcap is not None:
        scores = request.softcap * torch.tanh(scores / request.softcap)
    if request.causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
    if request.sinks is not None:
        sinks = request.sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], -1)
    weights = torch.softmax(scores, -1)[..., : keys.shape[-2]]
    return (weights @ values.float()).to(query.dtype)


def repeated(x: Tensor, count: int) -> Tensor:
    """[B, H, T, D] -> [B, H * count, T, D], each head `count` times in a row."""
    return x if count == 1 else x.repeat_interleave(count, 1)
