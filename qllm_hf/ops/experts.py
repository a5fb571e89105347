"""Products of tokens with the experts that were chosen for them.

Which experts are hit is only known at run time, and on the device. On GPUs one kernel finds out itself. Elsewhere, and
for gradients, there is a loop over experts, which no compiled graph can follow: while one is compiled, all of it is one
opaque operator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..choices import Choices
from ..on_gpu import TRIALS
from ..ordinary import is_ordinary
from ..packed import PackedTensor
from ..scheme import PER_ROW, Spec
from . import gpu, registry, right
from .registry import Request, linear


def expert_product(x: Tensor, experts: Tensor, weight: PackedTensor, activation: Spec | None) -> Tensor:
    """y [N, O]: row n of x [N, I] times the packed matrix of expert `experts[n]`, of weight [E, O, I].

    x may have fewer rows, [N / k, I]: then each is that of k neighbors, as of the k experts of a token. Only experts
    that are hit are read. Rows of an expert outside 0 .. E-1 (a token that belongs to another process) become 0.
    """
    if not torch.compiler.is_compiling():
        return _product(x, experts, weight, activation)
    spec = weight.spec
    product: Tensor = _opaque(
        x, experts, weight.words, weight.scale, weight.zero_point, weight.length,
        spec.bits, spec.group_size, spec.symmetric, spec.paper_exact,
        activation.bits if activation else 0, activation.symmetric if activation else False,
    )  # fmt: skip
    return product


def _product(x: Tensor, experts: Tensor, weight: PackedTensor, activation: Spec | None) -> Tensor:
    if not is_ordinary(x):
        return _loop(x, experts, weight, activation)
    request = Request(x.device.type, x.dtype, weight.spec, activation, weight.scale.dtype)
    circumstances = EXPERTS, registry.LINEAR, CHOICES.asked_for, registry.CHOICES.asked_for
    return _chosen(circumstances, request).run(x, experts, weight, activation)


def _loop(x: Tensor, experts: Tensor, weight: PackedTensor, activation: Spec | None) -> Tensor:
    y = x.new_zeros(experts.shape[0], weight.words.shape[1])
    choices = max(1, experts.shape[0] // max(1, x.shape[0]))
    for expert in torch.unique(experts).tolist():
        if 0 <= expert < weight.words.shape[0]:
            rows = torch.where(experts == expert)[0]
            y = y.index_copy(0, rows, linear(x[rows // choices], weight.part(expert), None, activation))
    return y


def _on_gpu(x: Tensor, experts: Tensor, weight: PackedTensor, activation: Spec | None) -> Tensor:
    sizes = x.shape[0].bit_length(), experts.shape[0].bit_length()
    return TRIALS.run(
        ("products of experts", x.dtype, sizes, activation, weight.words.shape, weight.scale.dtype, weight.spec),
        lambda: gpu.expert_product(x, experts, weight, activation),
        lambda found: right.fault_of_experts(found, x, experts, weight, activation),
        lambda: _loop(x, experts, weight, activation),
    )


@dataclass(frozen=True)
class Implementation:
    """One way to multiply with experts; `refuses` gives the reason why it cannot take a request, or None."""

    name: str
    summary: str
    run: Callable[[Tensor, Tensor, PackedTensor, Spec | None], Tensor]
    refuses: Callable[[Request], str | None]
    automatic: bool = True


def _kernels(name: str, summary: str) -> Implementation:
    """The kernels for GPUs take all experts at once wherever they take a single matrix."""

    def refuses(request: Request) -> str | None:
        chosen = registry.resolve(request).chosen.name
        return None if chosen == name else f"a single matrix takes {chosen} here"

    return Implementation(name, summary, _on_gpu, refuses)


EXPERTS = (
    _kernels(gpu.NAME, "Triton, all experts at once"),
    *([_kernels(gpu.INTERPRETER, "Triton in Python")] if gpu.INTERPRETED else []),
    Implementation("loop", "a product for each expert that was chosen", _loop, lambda _: None),
)
CHOICES: Choices[Request, Implementation] = Choices("QLLM_HF_EXPERTS", lambda: EXPERTS)
prefer, resolve = CHOICES.prefer, CHOICES.resolve


@functools.lru_cache
def _chosen(circumstances: object, request: Request) -> Implementation:
    """What `resolve` says, looked up where it was asked before under the same circumstances."""
    return resolve(request).chosen


@torch.library.custom_op("qllm_hf::expert_product", mutates_args=())
def _opaque(
    x: Tensor,
    experts: Tensor,
    words: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    length: int,
    bits: int,
    group_size: int,
    symmetric: bool,
    paper_exact: bool,
    activation_bits: int,
    activation_symmetric: bool,
) -> Tensor:
    weight = PackedTensor(words, scale, zero_point, Spec(bits, group_size, symmetric, paper_exact), length)
    activation = Spec(activation_bits, PER_ROW, activation_symmetric, paper_exact) if activation_bits else None
    return _product(x, experts, weight, activation)


@_opaque.register_fake
def _(x: Tensor, experts: Tensor, words: Tensor, *rest: object) -> Tensor:
    return x.new_empty(experts.shape[0], words.shape[1])
