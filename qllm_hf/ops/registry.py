"""The table of implementations and the choice among them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..packed import PackedTensor
from ..scheme import Spec
from . import cpu, integer, reference

Pair = tuple[PackedTensor, "Tensor | None"]  # a weight and its bias
LinearFunction = Callable[[Tensor, PackedTensor, "Tensor | None", "Spec | None"], Tensor]
LinearManyFunction = Callable[[Tensor, Sequence[Pair], "Spec | None"], list[Tensor]]


@dataclass(frozen=True)
class Request:
    """What an implementation must know to accept or refuse: where, in which dtype, which specs.

    `scale_dtype` is the dtype of the weight's scales, or None for that of the activations.
    """

    device: str
    dtype: torch.dtype
    weight: Spec
    activation: Spec | None
    scale_dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Implementation:
    """One way to run an operation.

    `refuses` gives the reason why it cannot take a request, or None. One that is not `automatic` is exact
    but slow, and runs only where it is asked for by name. `run_many` multiplies one x with several weights at once,
    where that is faster.
    """

    name: str
    summary: str
    run: LinearFunction
    refuses: Callable[[Request], str | None]
    automatic: bool = True
    run_many: LinearManyFunction | None = None


@dataclass(frozen=True)
class Resolution:
    """The implementation that runs, and (name, reason) of each one that was passed over before it."""

    chosen: Implementation
    refused: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        passed = "".join(f"; not {name}: {reason}" for name, reason in self.refused)
        return f"{self.chosen.name} ({self.chosen.summary}){passed}"


LINEAR = (
    Implementation("cpu", "C++, on packed weights", cpu.linear, cpu.refuses, run_many=cpu.linear_many),
    Implementation("integer", "products of integers, exact zero points", integer.linear, integer.refuses, False),
    Implementation("dequantize", "torch, the weight is dequantized for each call", reference.linear, lambda _: None),
)


def _known(name: str | None) -> str | None:
    names = [implementation.name for implementation in LINEAR]
    if name is not None and name not in names:
        raise ConfigError(f"QLLM_HF_LINEAR={name!r} is no implementation: allowed are {', '.join(names)}.")
    return name


_preferred: str | None = None
_changes = 0  # how often `prefer` began or ended: what was resolved before may be out of date


@contextlib.contextmanager
def prefer(name: str | None) -> Iterator[None]:
    """Within the block, run the named implementation wherever it can take the request.

    Raises:
        ConfigError: there is no implementation of that name.
    """
    global _preferred, _changes
    before, _preferred = _preferred, _known(name)
    _changes += 1
    try:
        yield
    finally:
        _preferred = before
        _changes += 1


def changes() -> int:
    """A number that is another one after each change of what is preferred."""
    return _changes


def resolve(request: Request) -> Resolution:
    """Which implementation of the linear operation takes a request, and why those before it do not.

    The environment variable QLLM_HF_LINEAR, or the block `prefer(name)`, names one to use where it can run. Layers that
    have run keep what they resolved until the next `prefer`, so set the variable before.

    Raises:
        ConfigError: QLLM_HF_LINEAR names no implementation, or QLLM_HF_CPU no level.
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


_chosen: dict[tuple[object, ...], Implementation] = {}
_table = LINEAR  # what the choices were made from


def chosen(x: Tensor, weight: PackedTensor, activation: Spec | None) -> Implementation:
    """The implementation that multiplies x with a weight: what `resolve` says, looked up where it was asked before."""
    global _table
    request = (x.device.type, x.dtype, weight.spec, activation, weight.scale.dtype)
    if torch.compiler.is_compiling():
        return resolve(Request(*request)).chosen
    if _table is not LINEAR:
        _chosen.clear()
        _table = LINEAR
    key = (_preferred or os.environ.get("QLLM_HF_LINEAR"), *request)
    found = _chosen.get(key)
    if found is None:
        found = _chosen[key] = resolve(Request(*request)).chosen
    return found


def linear(x: Tensor, weight: PackedTensor, bias: Tensor | None, activation: Spec | None) -> Tensor:
    """x [..., I] times the packed weight [O, I], plus bias [O]: [..., O] in the dtype of x.

    `activation` quantizes x per token first; None leaves it in floating point.
    """
    return chosen(x, weight, activation).run(x, weight, bias, activation)


def linear_many(x: Tensor, pairs: Sequence[Pair], activation: Spec | None) -> list[Tensor]:
    """As `linear` for several (weight, bias) at once, which share x: a list of [..., O]."""
    implementations = [chosen(x, weight, activation) for weight, _ in pairs]
    run_many = implementations[0].run_many if implementations else None
    if run_many is not None and all(each is implementations[0] for each in implementations):
        return run_many(x, pairs, activation)
    return [each.run(x, weight, bias, activation) for each, (weight, bias) in zip(implementations, pairs, strict=True)]
