"""The table of implementations and the choice among them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..packed import PackedTensor
from ..scheme import Spec
from . import integer, reference

LinearFunction = Callable[[Tensor, PackedTensor, "Tensor | None", "Spec | None"], Tensor]


@dataclass(frozen=True)
class Request:
    """What an implementation must know to accept or refuse: where, in which dtype, which specs."""

    device: str
    dtype: torch.dtype
    weight: Spec
    activation: Spec | None


@dataclass(frozen=True)
class Implementation:
    """One way to run an operation.

    `refuses` gives the reason why it cannot take a request, or None. One that is not `automatic` is exact
    but slow, and runs only where it is asked for by name.
    """

    name: str
    summary: str
    run: LinearFunction
    refuses: Callable[[Request], str | None]
    automatic: bool = True


@dataclass(frozen=True)
class Resolution:
    """The implementation that runs, and (name, reason) of each one that was passed over before it."""

    chosen: Implementation
    refused: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        passed = "".join(f"; not {name}: {reason}" for name, reason in self.refused)
        return f"{self.chosen.name} ({self.chosen.summary}){passed}"


LINEAR = (
    Implementation("integer", "products of integers, exact zero points", integer.linear, integer.refuses, False),
    Implementation("dequantize", "torch, the weight is dequantized for each call", reference.linear, lambda _: None),
)


def _known(name: str | None) -> str | None:
    names = [implementation.name for implementation in LINEAR]
    if name is not None and name not in names:
        raise ConfigError(f"QLLM_HF_LINEAR={name!r} is no implementation: allowed are {', '.join(names)}.")
    return name


_preferred: str | None = None


@contextlib.contextmanager
def prefer(name: str | None) -> Iterator[None]:
    """Within the block, run the named implementation wherever it can take the request.

    Raises:
        ConfigError: there is no implementation of that name.
    """
    global _preferred
    before, _preferred = _preferred, _known(name)
    try:
        yield
    finally:
        _preferred = before


def resolve(request: Request) -> Resolution:
    """Which implementation of the linear operation takes a request, and why those before it do not.

    The environment variable QLLM_HF_LINEAR, or the block `prefer(name)`, names one to use where it can run.

    Raises:
        ConfigError: QLLM_HF_LINEAR names no implementation.
    """
    preferred = _preferred or _known(os.environ.get("QLLM_HF_LINEAR"))
    for implementation in LINEAR:
        if implementation.name == preferred and implementation.refuses(request) is None:
            return Resolution(implementation, ())
    refused: list[tuple[str, str]] = []
    for implementation in LINEAR:
        reason = implementation.refuses(request)
        if reason is None and not implementation.automatic:
            reason = f"runs only on demand (QLLM_HF_LINEAR={implementation.name})"
        if reason is None:
            return Resolution(implementation, tuple(refused))
        refused.append((implementation.name, reason))
    raise AssertionError("the last implementation accepts everything")


def linear(x: Tensor, weight: PackedTensor, bias: Tensor | None, activation: Spec | None) -> Tensor:
    """x [..., I] times the packed weight [O, I], plus bias [O]: [..., O] in the dtype of x.

    `activation` quantizes x per token first; None leaves it in floating point.
    """
    request = Request(x.device.type, x.dtype, weight.spec, activation)
    return resolve(request).chosen.run(x, weight, bias, activation)
