"""The linear operation on GPUs: the Triton kernels of `qllm_kernels.gpu`, on packed weights as they are stored.

Few tokens are multiplied with codes as they come out of memory; for many the weight is decoded once, and torch
multiplies. Quantized activations become integers, and so do the products. What kernels do not take (float32 without
quantized activations, groups that are no 32, 64 or multiple of 128) and gradients take plain torch.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qllm_kernels import gpu

from ..on_gpu import TRIALS
from ..ordinary import is_ordinary
from ..scheme import PER_ROW, Spec
from . import graph, reference, right
from .graph import Pair

if TYPE_CHECKING:
    from ..packed import PackedTensor
    from .registry import Request

NAME, INTERPRETER = "triton", "interpreter"
INTERPRETED = gpu.INTERPRETED

# To decode a weight costs as much as to read it in 16 bits, which 256 tokens keep the tensor cores busy for.
DECODED_FROM = 256


def refuses(request: Request) -> str | None:
    """Why the kernels cannot take a request, or None."""
    return "is for tensors on a GPU" if request.device != "cuda" else _refuses(request)


def refuses_interpreter(request: Request) -> str | None:
    """Why the kernels cannot take a request on the CPU, in Triton's interpreter, or None."""
    return "runs kernels for GPUs on the CPU, to test them" if request.device != "cpu" else _refuses(request)


def _refuses(request: Request) -> str | None:
    missing = gpu.missing()
    if missing is not None:
        return missing
    weight, activation = request.weight, request.activation
    if weight.paper_exact or (activation is not None and activation.paper_exact):
        return "paper_exact asks for the published arithmetic, which torch has"
    if activation is not None and activation.group_size != PER_ROW:
        return "activations in groups: takes one group per token"
    reason: str | None = _refuses_format(
        request.dtype,
        request.scale_dtype or request.dtype,
        weight.bits,
        weight.group_size,
        activation.bits if activation else 0,
    )
    return reason


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _refuses_format(
    dtype: torch.dtype, scale_dtype: torch.dtype, bits: int, group_size: int, activation_bits: int
) -> str | None:
    if not activation_bits:
        found = _kernels("weights").refuses(dtype, scale_dtype, bits=bits, group_size=group_size)
    else:
        found = _kernels("integers").refuses(
            torch.empty(0, 0, dtype=torch.int16), bits=bits, group_size=group_size, dtype=dtype,
            scale_dtype=scale_dtype, activation_bits=activation_bits,
        )  # fmt: skip
    reason: str | None = found
    return reason


def expert_product(x: Tensor, experts: Tensor, weight: PackedTensor, activation: Spec | None) -> Tensor:
    """y [N, O]: row n of x [N, I] times the packed matrix of expert `experts[n]`, of weight [E, O, I].

    x may have fewer rows, [N / k, I], each for k neighbors. For what `linear` takes; nothing waits for the device.
    """
    kernels, form = _kernels("experts"), _format(weight)
    chosen = experts if experts.dtype in kernels.INDEX_TYPES else experts.long()
    y: Tensor
    if activation is None:
        y = kernels.linear(x, chosen, *weight[:3], **form)
        return y
    tokens = _quantized(x, activation, _span(weight, activation))
    del form["length"]
    y = _kernels("experts_integers").multiply(tokens, chosen, *weight[:3], **form)
    return y


def linear(x: Tensor, weight: PackedTensor, bias: Tensor | None, activation: Spec | None) -> Tensor:
    """x [..., I] times the packed weight [O, I], plus bias [O]: [..., O] in the dtype of x."""
    return linear_many(x, [(weight, bias)], activation)[0]


def linear_many(x: Tensor, pairs: Sequence[Pair], activation: Spec | None) -> list[Tensor]:
    """As `linear` for several weights and their biases; x is quantized once."""
    if torch.compiler.is_compiling() and not (torch.is_grad_enabled() and x.requires_grad):
        return graph.products(NAME, x, pairs, activation)
    if not is_ordinary(x) or torch.compiler.is_compiling():
        return [reference.linear(x, weight, bias, activation) for weight, bias in pairs]
    return _products(x, pairs, activation)


def _products(x: Tensor, pairs: Sequence[Pair], activation: Spec | None) -> list[Tensor]:
    formats = tuple((weight.words.shape, weight.scale.dtype, weight.spec, bias is None) for weight, bias in pairs)
    return TRIALS.run(
        ("products", x.dtype, x.shape[:-1].numel().bit_length(), activation, formats),
        lambda: _multiplied(x, pairs, activation),
        lambda found: right.fault_of_products(found, x, pairs, activation),
        lambda: [reference.linear(x, weight, bias, activation) for weight, bias in pairs],
    )


def _multiplied(x: Tensor, pairs: Sequence[Pair], activation: Spec | None) -> list[Tensor]:
    vectors = x.reshape(-1, x.shape[-1])
    if activation is not None:
        found = _of_integers(vectors, pairs, activation)
    elif len(vectors) >= DECODED_FROM:
        found = [_by_decoding(vectors, weight, bias) for weight, bias in pairs]
    else:
        found = _of_codes(vectors, pairs)
    return [y.view(*x.shape[:-1], y.shape[-1]) for y in found]


graph.BODIES[NAME] = _products


def _of_codes(x: Tensor, pairs: Sequence[Pair]) -> list[Tensor]:
    """Weights of one format, all with a bias or none, are multiplied at once."""
    alike: dict[object, list[int]] = {}
    for place, (weight, bias) in enumerate(pairs):
        kind = tuple(_format(weight).values()), weight.zero_point is None, weight.scale.dtype, bias is None
        alike.setdefault(kind, []).append(place)
    found: dict[int, Tensor] = {}
    for places in alike.values():
        weights = [(*pairs[place][0][:3], pairs[place][1]) for place in places]
        form = _format(pairs[places[0]][0])
        found.update(zip(places, _kernels("weights_many").linear_many(x, weights, **form), strict=True))
    return [found[place] for place in range(len(pairs))]


def _by_decoding(x: Tensor, weight: PackedTensor, bias: Tensor | None) -> Tensor:
    y: Tensor = _kernels("decode").linear_by_decoding(x, *weight[:3], **_format(weight), bias=bias)
    return y


def _of_integers(x: Tensor, pairs: Sequence[Pair], activation: Spec) -> list[Tensor]:
    kernels, tokens, results = _kernels("integers"), {}, []
    for weight, bias in pairs:
        described = _format(weight)
        span = _span(weight, activation)
        if span not in tokens:
            tokens[span] = _quantized(x, activation, span)
        del described["length"]
        results.append(kernels.multiply(tokens[span], *weight[:3], **described, bias=bias))
    return results


def _span(weight: PackedTensor, activation: Spec) -> int:
    """Over how many elements of tokens a product of integers with the weight wants sums."""
    kernels = _kernels("integers")
    span: int = kernels.sums_over(weight.zero_point, **_format(weight), activation_bits=activation.bits)
    return span


def _quantized(x: Tensor, activation: Spec, span: int) -> Any:
    return _kernels("tokens").quantize_tokens(x, bits=activation.bits, symmetric=activation.symmetric, sums_over=span)


def _format(weight: PackedTensor) -> dict[str, int]:
    return {"bits": weight.spec.bits, "group_size": weight.spec.group_size, "length": weight.length}


@functools.cache
def _kernels(name: str) -> Any:
    # only here, since they need Triton
    return importlib.import_module(f"qllm_kernels.gpu.{name}")
