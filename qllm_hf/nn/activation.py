"""Activations quantized per token, dynamically: simulated in floating point."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..scheme import Spec
from ..uniform import affine_params, choose_codes, fake_quantize


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` in the forward pass, the identity in the backward pass, where a gradient is wanted."""
    if torch.is_grad_enabled() and x.requires_grad:
        return quantized.detach() + (x - x.detach())  # in this order, so that the value is exact
    return quantized


def fake_quantize_rows(x: Tensor, spec: Spec, process_group: Any = None) -> Tensor:
    """x [..., I] rounded to each token's own grid.

    With `process_group`, x is this process's slice of longer rows (row-wise tensor parallelism): the range
    is then taken over the whole row, so that the result equals that of a single process.
    """
    if process_group is None:
        return straight_through(x, fake_quantize(x, spec))
    row = x.detach().unsqueeze(-2)  # [..., 1, I]: one group
    ends = torch.cat([row.amax(-1, keepdim=True), -row.amin(-1, keepdim=True)], -1).contiguous()
    dist.all_reduce(ends, op=dist.ReduceOp.MAX, group=process_group)
    scale, zero_point = affine_params(row, spec, low=-ends[..., 1:], high=ends[..., :1])
    codes = choose_codes(row, scale, zero_point, spec)
    return straight_through(x, ((codes - zero_point) * scale.to(zero_point.dtype)).squeeze(-2).to(x.dtype))
