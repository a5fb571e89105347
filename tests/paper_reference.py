"""The study's quantizer written again from its description, to compare the package with. Shares no code with it.

`published` repeats the published arithmetic in the tensor's own dtype. `exact_group` is what the package does by
default, one Python number after the other, with the choice of each code in exact fractions.
"""

from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor


def published(x: Tensor, bits: int, *, symmetric: bool = False, group_size: int = -1) -> Tensor:
    """x [..., K] rounded to the grid of each group: `group_size` elements, a row (-1), or the whole tensor (0).

    Raises:
        AssertionError: what stopped the study's code: a group that does not divide K, or a NaN in the result.
    """
    if group_size > 0:
        assert x.shape[-1] % group_size == 0, f"{group_size} does not divide {x.shape[-1]}"
    width = {-1: x.shape[-1], 0: x.numel()}.get(group_size, group_size)
    rows = x.reshape(-1, width)
    if symmetric:
        smallest, largest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        scale = rows.abs().max(dim=1, keepdim=True).values.clamp(min=1e-5) / largest
        zero = torch.zeros_like(scale)
    else:
        smallest, largest = 0, 2**bits - 1
        low, high = rows.min(dim=1, keepdim=True).values, rows.max(dim=1, keepdim=True).values
        scale = (high - low).clamp(min=1e-5) / largest
        zero = (-(low / scale).round()).clamp(smallest, largest)
    steps = ((rows / scale).round() + zero).clamp(smallest, largest)
    result = (steps - zero) * scale
    assert not result.isnan().any(), "NaN"
    return result.reshape(x.shape)


class ExactGroup(NamedTuple):
    """One group, element by element.

    `doubtful` marks elements whose quotient x / scale lies so close to the middle between two codes that float32
    cannot tell on which side.
    """

    codes: list[int]
    scale: float
    zero_point: int
    values: list[float]
    doubtful: list[bool]


def exact_group(x: list[float], bits: int, dtype: torch.dtype, *, symmetric: bool = False) -> ExactGroup:
    """One group of finite numbers; the range includes 0, the scale is rounded to float32 and then to `dtype`."""
    steps = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    low, high = min(*x, 0.0), max(*x, 0.0)
    spread = max(-low, high) if symmetric else rounded(high - low)
    scale = rounded(rounded(max(spread, rounded(1e-5)) / steps), dtype)
    zero_point = 2 ** (bits - 1) if symmetric else min(max(-round(Fraction(low) / Fraction(scale)), 0), steps)
    quotients = [Fraction(value) / Fraction(scale) for value in x]
    codes = [min(max(round(quotient) + zero_point, 0), 2**bits - 1) for quotient in quotients]
    values = [rounded(rounded((code - zero_point) * scale), dtype) for code in codes]
    return ExactGroup(codes, scale, zero_point, values, [is_doubtful(quotient) for quotient in quotients])


def rounded(value: float, dtype: torch.dtype = torch.float32) -> float:
    """The nearest number of the dtype. After one operation in float64 this gives what float32 would have given."""
    return float(torch.tensor(value, dtype=torch.float64).to(dtype))


def is_doubtful(quotient: Fraction) -> bool:
    """Within one rounding error of float32 of a tie, but not on it."""
    distance = abs(abs(quotient) % 1 - Fraction(1, 2))
    return 0 < distance <= abs(quotient) / 2**24
