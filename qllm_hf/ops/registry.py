"""The table of implementations and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..choices import Choices
from ..packed import PackedTensor
from ..scheme import Spec
from . import cpu, gpu, integer, reference
from .graph import Pair

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


_INTERPRETER = Implementation(
    gpu.INTERPRETER, "Triton in Python", gpu.linear, gpu.refuses_interpreter, False, gpu.linear_many
)
LINEAR = (
    Implementation(cpu.NAME, "C++, on packed weights", cpu.linear, cpu.refuses, run_many=cpu.linear_many),
    Implementation(gpu.NAME, "Triton, on packed weights", gpu.linear, gpu.refuses, run_many=gpu.linear_many),
    *([_INTERPRETER] if gpu.INTERPRETED else []),
    Implementation("integer", "products of integers, exact zero points", integer.linear, integer.refuses, False),
    Implementation("dequantize", "torch, the weight is dequantized for each call", reference.linear, lambda _: None),
)


CHOICES: Choices[Request, Implementation] = Choices("QLLM_HF_LINEAR", lambda: LINEAR)
prefer, resolve = CHOICES.prefer, CHOICES.resolve
"""Layers that have run keep what they resolved until the next `prefer`, so set the variable before."""


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
    key = (CHOICES.asked_for, *request)
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
