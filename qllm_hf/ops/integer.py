"""The linear operation on integers: what a kernel with integer tensor cores computes.

    y[t, o] = scale_x[t] * sum over groups G of scale_w[o, G] * sum over i in G of
              (x[t, i] - zero_x[t]) (w[o, i] - zero_w[o, G])

The inner sum is a sum of integers and carries no rounding at all: both zero points are subtracted as
integers before the product, which is the plain way to handle them exactly. Only the sum over groups and
the two scales are in floating point (float32, float64 for float64 input). The products run in float64
arithmetic, which holds integers up to 2^53 exactly: far more than 255 * 255 * in_features, and much
faster in torch than its integer matrix product.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..packed import PackedTensor
from ..scheme import PER_ROW, PER_TENSOR, Spec
from ..uniform import group, quantize

if TYPE_CHECKING:
    from .registry import Request


def refuses(request: Request) -> str | None:
    """Why a request cannot run on integers, or None."""
    return "activations are in floating point" if request.activation is None else None


def linear(x: Tensor, weight: PackedTensor, bias: Tensor | None, activation: Spec | None) -> Tensor:
    """x [..., I] times the packed weight [O, I], plus bias [O]: [..., O] in the dtype of x. Needs `activation`."""
    assert activation is not None, "refuses() sends floating-point activations elsewhere"
    work = torch.promote_types(x.dtype, torch.float32)
    tokens = quantize(x.reshape(-1, x.shape[-1]), activation)
    x_codes = _centered(tokens.codes, tokens.zero_point, activation)  # [T, I]
    w_codes = _centered(weight.codes(), weight.zero_point, weight.spec)  # [O, I]
    grouping = weight.spec if weight.spec.group_size != PER_TENSOR else replace(weight.spec, group_size=PER_ROW)
    sums = torch.einsum("tgi,ogi->tog", group(x_codes, grouping), group(w_codes, grouping))
    y = (sums.to(work) * weight.scale.to(work)).sum(-1) * tokens.scale.to(work)
    if bias is not None:
        y = y + bias.to(work)
    result: Tensor = y.to(x.dtype).reshape(*x.shape[:-1], weight.words.shape[0])
    return result


def _centered(codes: Tensor, zero_point: Tensor | None, spec: Spec) -> Tensor:
    """The integers codes - zero_point, as float64 [rows, K]."""
    values: Tensor = codes.to(torch.float64)
    if zero_point is None:
        center: int = 2 ** (spec.bits - 1)
        return values - center
    zeros = zero_point.to(torch.float64)
    if spec.group_size > 0:
        zeros = zeros.repeat_interleave(spec.group_size, -1)[..., : codes.shape[-1]]
    difference: Tensor = values - zeros
    return difference
