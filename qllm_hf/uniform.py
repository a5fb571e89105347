"""Uniform quantization of a tensor along its last dimension: the study's formula, in torch only.

Dimension letters used everywhere: O out features, I in features, G groups, g group size, B batch,
H kv heads, T tokens, D head dim.

For a group x of g elements and b bits:

    asymmetric  scale      = max(max(x) - min(x), 1e-5) / (2^b - 1)
                zero_point = clamp(-round(min(x) / scale), 0, 2^b - 1)
                codes      = clamp(round(x / scale) + zero_point, 0, 2^b - 1)
    symmetric   scale      = max(max|x|, 1e-5) / (2^(b-1) - 1)
                zero_point = 2^(b-1), the same for all groups: not stored
                codes      = clamp(round(x / scale), -2^(b-1), 2^(b-1) - 1) + 2^(b-1)
    both        x'         = (codes - zero_point) * scale          round half to even

The study's code applies this in the tensor's own dtype and takes min and max as they are. Two things
then go wrong, so they are kept only under `paper_exact=True`:

* a group that lies wholly on one side of 0 is destroyed (5..6 at 4 bits becomes 1.0), because the zero
  point cannot leave 0..2^b - 1. Here the range is first extended to include 0, which changes nothing
  for a group that spans 0.
* in 16-bit floats the arithmetic itself loses accuracy (8 bits in bfloat16: 10 % more error) and
  overflows (float16 values more than 65504 apart become NaN). Here it runs in float32, with the scale
  rounded to the tensor's dtype before the codes are taken, so that what is stored is what was used.

Non-finite values make the scale non-finite, and the whole group NaN (as published, some of it infinite): nothing is
hidden.

Source: arXiv 2402.18158 section 2; Qllm-Eval `pseudo_quantize_tensor`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import SchemeError
from .layout import group_count
from .scheme import PER_TENSOR, Spec

SMALLEST_RANGE = 1e-5


class Quantized(NamedTuple):
    """Codes and the parameters that give them meaning.

    Attributes:
        codes: uint8 [..., K], unsigned, 0 .. 2^bits - 1.
        scale: [..., G] in the dtype of the tensor that was quantized.
        zero_point: uint8 [..., G], or None for symmetric quantization.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None


def quantize(x: Tensor, spec: Spec, scale_dtype: torch.dtype | None = None) -> Quantized:
    """Codes uint8 [..., K], scale [..., G] and zero_point uint8 [..., G] of x [..., K].

    With `group_size=0` a matrix (the last two dimensions) is one group: scale and zero point are [..., 1, 1].
    `scale_dtype` is what scales are stored in where that is not the dtype of x: a float32 matrix that was made
    from a bfloat16 one need not be rounded twice.

    Raises:
        SchemeError: x is not floating point, or `paper_exact` and the group size does not divide K.

    >>> quantize(torch.tensor([[-1.0, 0.0, 0.5, 2.0]]), Spec(2, 4)).codes.tolist()
    [[0, 1, 1, 3]]
    """
    steps, scale, zero_point = _grouped_codes(x, spec, scale_dtype)
    codes = ungroup(steps, x.shape, spec).to(torch.uint8)
    return Quantized(codes, scale.squeeze(-1), None if spec.symmetric else zero_point.squeeze(-1).to(torch.uint8))


def dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, spec: Spec, dtype: torch.dtype | None = None
) -> Tensor:
    """x' = (codes - zero_point) * scale, [..., K] as the codes, in the dtype of the scale or `dtype`."""
    dtype = dtype or scale.dtype
    work = _arithmetic_dtype(scale.dtype, spec)
    grouped = group(codes, spec)
    center: Tensor | int = 2 ** (spec.bits - 1) if zero_point is None else zero_point.unsqueeze(-1).to(work)
    values = (grouped.to(work) - center) * scale.unsqueeze(-1).to(work)
    return ungroup(values, codes.shape, spec).to(dtype)


def fake_quantize(x: Tensor, spec: Spec) -> Tensor:
    """x [..., K] after quantization and back: what a packed computation means, simulated in floating point.

    Bit for bit the same as `dequantize(*quantize(x, spec), spec)`; nothing is rounded to integers in memory.
    """
    codes, scale, zero_point = _grouped_codes(x, spec)
    return ungroup((codes - zero_point) * scale.to(codes.dtype), x.shape, spec).to(x.dtype)


def affine_params(
    groups: Tensor,
    spec: Spec,
    low: Tensor | None = None,
    high: Tensor | None = None,
    scale_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Scale (in the dtype it is stored in) and zero point of each group: groups [..., G, g] -> two of [..., G, 1].

    `low` and `high` give the range where it is known better than from the elements at hand (a row that is
    sharded over processes, a range that was chosen).
    """
    stored = scale_dtype or groups.dtype
    work = _arithmetic_dtype(groups.dtype, spec)
    groups = groups.to(work)
    low = groups.amin(-1, keepdim=True) if low is None else low.to(work)
    high = groups.amax(-1, keepdim=True) if high is None else high.to(work)
    if spec.symmetric:
        largest = torch.maximum(high.abs(), low.abs())
        scale = (largest.clamp(min=SMALLEST_RANGE) / (2 ** (spec.bits - 1) - 1)).to(stored)
        return scale, torch.full_like(scale, 2 ** (spec.bits - 1), dtype=work)
    top = 2**spec.bits - 1
    if not spec.paper_exact:
        low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low).clamp(min=SMALLEST_RANGE) / top).to(stored)
    zero_point = (-torch.round(low / scale.to(work))).clamp(0, top)
    return scale, zero_point if spec.paper_exact else zero_point.nan_to_num(0.0)


def _grouped_codes(x: Tensor, spec: Spec, scale_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Codes as floats [..., G, g], scale and zero point [..., G, 1] of x [..., K]."""
    if not x.is_floating_point():
        raise SchemeError(f"cannot quantize a tensor of {x.dtype}: give a floating-point tensor.")
    check_group_size(x.shape[-1], spec)
    groups = group(x, spec)
    scale, zero_point = affine_params(groups, spec, scale_dtype=scale_dtype)
    return choose_codes(groups, scale, zero_point, spec), scale, zero_point


def choose_codes(groups: Tensor, scale: Tensor, zero_point: Tensor, spec: Spec) -> Tensor:
    """The code of each element as a float: groups [..., G, g], scale and zero_point [..., G, 1] -> [..., G, g].

    The end of a float16 range may lie half a step beyond the largest float16: codes that mean more are not used.
    Where a scale is not finite all codes are the zero point: 0 times that scale is NaN. Others would mean infinities,
    and attention takes a key of -inf for one that is not seen.
    """
    work, top = zero_point.dtype, 2**spec.bits - 1
    steps = torch.round(groups.to(work) / scale.to(work))
    if not spec.paper_exact:
        steps = steps.nan_to_num(0.0, torch.inf, -torch.inf)
    codes = steps + zero_point
    if scale.dtype != torch.float16 or spec.paper_exact:
        return codes.clamp(0, top)
    reach = torch.floor(torch.finfo(torch.float16).max / scale.to(work))
    return codes.clamp((zero_point - reach).clamp(min=0), (zero_point + reach).clamp(max=top))


def check_group_size(length: int, spec: Spec) -> None:
    """Raises SchemeError where the published code would stop: a group size that does not divide the row."""
    if spec.paper_exact and spec.group_size > 0 and length % spec.group_size:
        divisors = [size for size in range(1, length + 1) if length % size == 0]
        below = max((size for size in divisors if size <= spec.group_size), default=1)
        above = min((size for size in divisors if size > spec.group_size), default=length)
        raise SchemeError(
            f"group_size={spec.group_size} does not divide {length} elements, and paper_exact=True allows no short "
            f"group. Nearest divisors: {below} and {above}; or give paper_exact=False."
        )


def _arithmetic_dtype(dtype: torch.dtype, spec: Spec) -> torch.dtype:
    """The tensor's own dtype as published, or else float32 (float64 stays)."""
    return dtype if spec.paper_exact else torch.promote_types(dtype, torch.float32)


def group(x: Tensor, spec: Spec) -> Tensor:
    """[..., K] -> [..., G, g]. A short last group is filled with zeros: its range includes 0 anyway."""
    if spec.group_size == PER_TENSOR:
        return x.reshape(*x.shape[:-2], 1, 1, -1)
    length = x.shape[-1]
    size = spec.group_size if spec.group_size > 0 else length
    missing = -length % size if size else 0
    if missing:
        x = F.pad(x, (0, missing))
    return x.reshape(*x.shape[:-1], group_count(length, spec.group_size), size)


def ungroup(groups: Tensor, shape: torch.Size, spec: Spec) -> Tensor:
    """[..., G, g] -> the original shape [..., K]."""
    if spec.group_size == PER_TENSOR:
        return groups.reshape(shape)
    rows = groups.reshape(*shape[:-1], groups.shape[-2] * groups.shape[-1])
    return rows[..., : shape[-1]]
