"""Numbers at which arithmetic goes wrong, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _outlier(shape: tuple[int, ...], limit: torch.finfo) -> Tensor:
    x = torch.randn(shape, dtype=torch.float64)
    x.view(-1)[torch.randint(x.numel(), (1,))] = limit.max / 4
    return x


def _special(value: float) -> Callable[[tuple[int, ...], torch.finfo], Tensor]:
    def make(shape: tuple[int, ...], limit: torch.finfo) -> Tensor:
        x = torch.randn(shape, dtype=torch.float64)
        x.view(-1)[torch.randint(x.numel(), (max(1, x.numel() // 200),))] = value
        return x

    return make


def _rows_apart(shape: tuple[int, ...], limit: torch.finfo) -> Tensor:
    power = torch.empty(*shape[:-1], 1, dtype=torch.float64).uniform_(-6, 4)
    return torch.randn(shape, dtype=torch.float64) * 10**power


Make = Callable[[tuple[int, ...], torch.finfo], Tensor]

FINITE: dict[str, Make] = {
    "normal": lambda shape, _: torch.randn(shape, dtype=torch.float64),
    "rows apart": _rows_apart,
    "numbers apart": lambda shape, _: torch.randn(shape).double() * 10 ** torch.empty(shape).double().uniform_(-7, 4),
    "one-sided": lambda shape, _: 5 + torch.rand(shape, dtype=torch.float64),
    "equal": lambda shape, _: torch.full(shape, -3.3, dtype=torch.float64),
    "zeros": lambda shape, _: torch.zeros(shape, dtype=torch.float64),
    "zeros of either sign": lambda shape, _: torch.randn(shape, dtype=torch.float64) * 0.0,
    "one outlier": _outlier,
    "below the smallest range": lambda shape, _: torch.randn(shape, dtype=torch.float64) * 1e-6,
    "denormal": lambda shape, limit: torch.randn(shape, dtype=torch.float64) * limit.smallest_normal / 4,
    "60000": lambda shape, _: torch.randn(shape, dtype=torch.float64).sign() * 6e4,
    "next to the largest": lambda shape, limit: (torch.rand(shape, dtype=torch.float64) * 2 - 1) * limit.max,
    "ends of the dtype": lambda shape, limit: torch.randn(shape, dtype=torch.float64).sign() * limit.max,
    "ties": lambda shape, _: torch.randint(-255, 256, shape).double() / 2,
}
NOT_FINITE: dict[str, Make] = {
    "nan": _special(float("nan")),
    "inf": _special(float("inf")),
    "minus inf": _special(float("-inf")),
}
VALUES = FINITE | NOT_FINITE


def draw(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of that shape and dtype; torch's generator is the source of what is random."""
    limit = torch.finfo(dtype)
    x = VALUES[name](shape, limit)
    return (x if name in NOT_FINITE else x.clamp(limit.min, limit.max)).to(dtype)
