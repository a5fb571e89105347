"""Our own products: implementations of `qllm_hf.ops.LINEAR` on packed tensors, and bfloat16 as the measure."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qllm_hf.ops import LINEAR, Request
from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import FLOAT_BITS, PER_ROW, Spec
from qllm_hf.uniform import fake_quantize

from .method import Method, NotHere

BASELINE = "bf16 F.linear"
WEIGHTS = ((8, 128), (8, PER_ROW), (6, 128), (5, 128), (4, 32), (4, 64), (4, 128), (3, 128), (2, 64), (2, 128))
ACTIVATIONS = (FLOAT_BITS, 8, 4)


def encode(weight: Tensor, spec: Spec) -> PackedTensor:
    """The packed weight, of a model in bfloat16."""
    return PackedTensor.encode_weight(weight.bfloat16(), spec)


def run(packed: PackedTensor, x: Tensor, name: str, activation: Spec | None) -> Tensor:
    """y [M, N] through the implementation of that name.

    Raises:
        NotHere: there is none of that name, or it refuses.
    """
    return _implementation(name, packed.spec, activation)(x, packed, None, activation)


def meant(packed: PackedTensor) -> Tensor:
    """The weight that its codes mean, float32 [N, K]."""
    return packed.decode(torch.float32)


def methods(implementation: str) -> list[Method]:
    """bfloat16, and one implementation with all widths of weights and activations."""
    baseline = Method(
        BASELINE, "torch", "torch", "torch", FLOAT_BITS, PER_ROW, FLOAT_BITS,
        lambda weight: weight.bfloat16(), lambda weight, x: F.linear(x, weight), meant=lambda weight: weight,
    )  # fmt: skip
    return [baseline, *(_method(implementation, *weight, bits) for weight in WEIGHTS for bits in ACTIVATIONS)]


def _method(implementation: str, bits: int, group_size: int, activation_bits: int) -> Method:
    activation = Spec(activation_bits, PER_ROW) if activation_bits < FLOAT_BITS else None
    group = "per channel" if group_size == PER_ROW else f"g{group_size}"
    return Method(
        f"qllm_hf {implementation} W{bits} {group} A{activation_bits}",
        "qllm_hf", "qllm_hf", "qllm-hf", bits, group_size, activation_bits,
        partial(encode, spec=Spec(bits, group_size)),
        partial(run, name=implementation, activation=activation),
        meant=meant,
        rounded=None if activation is None else partial(_rounded, spec=activation),
    )  # fmt: skip


def _rounded(x: Tensor, spec: Spec) -> Tensor:
    return fake_quantize(x, spec)


_found: dict[tuple[str, Spec, Spec | None], Any] = {}


def _implementation(name: str, weight: Spec, activation: Spec | None) -> Any:
    """Looked up once, so that the time is that of the product."""
    key = (name, weight, activation)
    if key not in _found:
        chosen = [row for row in LINEAR if row.name == name]
        if not chosen:
            raise NotHere(f"not installed: no implementation {name!r} among {', '.join(row.name for row in LINEAR)}")
        refused = chosen[0].refuses(Request("cpu", torch.bfloat16, weight, activation))
        if refused:
            raise NotHere(f"refuses: {refused}")
        _found[key] = chosen[0].run
    return _found[key]
