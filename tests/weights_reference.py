"""Products of 16-bit floats with packed weights in float64, and how far the kernels for GPUs may be from that."""

import torch

U32 = 2.0**-24


def exact(x, packed, bias=None):
    """x [M, K] times a packed weight [O, K], plus bias [O]: [M, O] in float64, and the tolerance of each number.

    Any order of n additions in float32 errs by at most n 2^-24 times the sum of magnitudes. What is added are products
    with codes, zero points and, within a block, with what stands for both; and the result is rounded once.
    """
    group = torch.arange(packed.length) // (packed.spec.group_size if packed.spec.group_size > 0 else packed.length)
    codes, scale = packed.codes().double(), packed.scale.double()[:, group]
    zero = 2 ** (packed.spec.bits - 1) if packed.zero_point is None else packed.zero_point.double()[:, group]
    offset = 1024 if packed.spec.bits == 8 else 128
    added, size = (0, 0) if bias is None else (bias.double(), bias.double().abs())
    y, largest = x.double() @ ((codes - zero) * scale).T + added, x.double().abs()
    apart = (packed.length + 20) * (largest @ ((codes + zero) * scale).T + size) + 150 * offset * (largest @ scale.T)
    limits = torch.finfo(x.dtype)
    return y, 1.01 * (limits.eps / 2 * y.abs() + U32 * apart) + limits.tiny * limits.eps
