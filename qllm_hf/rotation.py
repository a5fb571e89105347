"""The orthonormal Hadamard rotation, which spreads outliers over a whole vector before it is quantized.

Some models have keys with a few channels much larger than the others, and those set the scale of all. Turned by an
orthonormal matrix R, a vector has no such channels, and products are what they were: (R q)' (R k) = q' k. So queries
are turned instead of turning keys back.

R is the Sylvester-Hadamard matrix over the square root of its size: symmetric, and its own inverse. It exists for
powers of two; of a vector whose length is 2^k m with m odd, each of the m parts of 2^k elements is turned by itself.

Source: the use of Hadamard matrices for keys is that of QuaRot (arXiv 2404.00456).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def rotation_size(length: int) -> int:
    """Elements that are turned together: the largest power of two that divides `length`."""
    return length & -length


def rotate(x: Tensor) -> Tensor:
    """R x along the last dimension of x [..., D], in its dtype, summed in float32 at least. Twice, it gives x again."""
    size = rotation_size(x.shape[-1])
    if size < 2:
        return x
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    hadamard = _hadamard if torch.compiler.is_compiling() else _kept_hadamard  # a graph keeps what it needs itself
    parts = x.to(dtype).reshape(*x.shape[:-1], -1, size) @ hadamard(size, x.device).to(dtype)
    turned: Tensor = (parts * size**-0.5).to(x.dtype).reshape(x.shape)
    return turned


def _hadamard(size: int, device: torch.device) -> Tensor:
    """The Sylvester-Hadamard matrix [size, size] of 1 and -1."""
    rows = torch.arange(size, device=device)
    shared = rows[:, None] & rows
    # entry i, j is -1 to the number of bits that i and j share
    odd = torch.stack([(shared >> bit) & 1 for bit in range(size.bit_length())]).sum(0) % 2
    return 1.0 - 2.0 * odd


_kept_hadamard = functools.cache(_hadamard)
