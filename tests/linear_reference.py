"""The linear operation in float64 on the codes, and how far an implementation may be from that.

Notation. u is the unit roundoff of a dtype (2^-24, 2^-11, 2^-8), K the length of a row, G its groups, and
A = |x'| |w'|^T + |bias| the sum of the magnitudes that are added. Any order of summation of n terms errs by at most
n u A (Higham, Accuracy and Stability, section 3.1). So

    integer     conversion of each sum, scale, G - 1 additions, scale, bias in float32; rounding of the result
                (G + 4) u32 + u
    dequantize  x' and w' each rounded in float32 and to the dtype, K products added in float32; result and bias rounded
                (K + 4) u32 + 4 u
    cpu         16 sums of integers over units of at least 32 elements, U of them, each scaled (product of two scales,
                two roundings) and added in float32, then added to each other; bias, result. The part of the zero
                point, zero sum(x), goes into one of the 16, so the magnitudes are those of codes and zero points
                apart: B = |x'| |scale (code + zero)|^T + |bias| >= A
                (U + 10) u32 with B, + u

times A, and 1 % for products of roundings.

Where activations are in floating point, the C++ kernels turn each block of 128 numbers into integers between -q and q
first: an absolute error of half a step, max|block| / 2q, for each number. q is at least 32512 for 16-bit types. For
float32 it is at least 8355711, and the quotient itself, which takes 24 bits, is rounded before it becomes an integer:
one and a half steps. That times the sum of |w'| over the block is added to the bound.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qllm_hf.layout import BLOCK
from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import Spec
from qllm_hf.uniform import Quantized, quantize

U32 = 2.0**-24
# name -> the factors of A and of B, from K, G and u of the result
ROUNDING = {
    "integer": lambda k, groups, u: ((groups + 4) * U32 + u, 0),
    "dequantize": lambda k, groups, u: ((k + 4) * U32 + 4 * u, 0),
    "cpu": lambda k, groups, u: (u, (-(-k // 32) + 10) * U32),
}
# largest error of a number in units of the largest one in its block
FIXED_POINT = {torch.float32: 1.5 / 8355711, torch.bfloat16: 0.505 / 32512, torch.float16: 0.505 / 32512}


class Exact(NamedTuple):
    """The exact result, sums of magnitudes A and B, and what fixed-point numbers may add: [tokens, O] in float64."""

    y: Tensor
    magnitudes: Tensor
    apart: Tensor
    fixed_point: Tensor
    length: int
    groups: int
    dtype: torch.dtype

    def tolerance(self, implementation: str) -> Tensor:
        """How far the named implementation may be from `y`."""
        limits = torch.finfo(self.dtype)
        a, b = ROUNDING[implementation](self.length, self.groups, limits.eps / 2)
        # the last term is the distance of the numbers below the smallest normal one
        rounding = 1.01 * (a * self.magnitudes + b * self.apart) + limits.smallest_normal * limits.eps
        return rounding + self.fixed_point if implementation == "cpu" else rounding

    def first(self, tokens: int) -> Exact:
        """The same of the first tokens only."""
        return Exact(*(part[:tokens] for part in self[:4]), *self[4:])


def meaning(quantized: Quantized, spec: Spec) -> Tensor:
    """(code - zero point) * scale [rows, K] in float64, which holds it exactly."""
    codes, scale, zeros = _parts(quantized, spec)
    return (codes - zeros) * scale


def _parts(quantized: Quantized, spec: Spec) -> tuple[Tensor, Tensor, Tensor | int]:
    """Code, scale and zero point of each element."""
    codes, scale, zero_point = quantized
    size = spec.group_size if spec.group_size > 0 else codes.shape[-1]
    group = torch.arange(codes.shape[-1]) // size
    zeros = 2 ** (spec.bits - 1) if zero_point is None else zero_point.double()[:, group]
    return codes.double(), scale.double()[:, group], zeros


def exact(x: Tensor, weight: PackedTensor, bias: Tensor | None, activation: Spec | None) -> Exact:
    """What x [tokens, K] times the packed weight [O, K], plus bias [O], means."""
    added = torch.zeros(weight.words.shape[0], dtype=torch.float64) if bias is None else bias.double()
    left = x.double() if activation is None else meaning(quantize(x, activation), activation)
    codes, scale, zeros = _parts(Quantized(weight.codes(), weight.scale, weight.zero_point), weight.spec)
    right = (codes - zeros) * scale
    y, magnitudes = left @ right.T + added, left.abs() @ right.abs().T + added.abs()
    apart = left.abs() @ ((codes + zeros) * scale).T + added.abs()
    fixed_point = torch.zeros_like(y)
    if activation is None:
        for start in range(0, weight.length, BLOCK):
            block, columns = left[:, start : start + BLOCK].abs(), right[:, start : start + BLOCK].abs()
            largest = block.amax(-1, keepdim=True)
            fixed_point += (FIXED_POINT[x.dtype] * largest) @ columns.sum(-1, keepdim=True).T
    return Exact(y, magnitudes, apart, fixed_point, weight.length, weight.scale.shape[-1], x.dtype)
