"""Products inside a graph that is being compiled: one opaque operator, whatever kernels are behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..packed import PackedTensor
from ..scheme import PER_ROW, Spec

Pair = tuple[PackedTensor, "Tensor | None"]  # a weight and its bias
Products = Callable[[Tensor, Sequence[Pair], "Spec | None"], list[Tensor]]

BODIES: dict[str, Products] = {}
"""What the operator does when it runs, by the name of the implementation that was chosen."""


def products(name: str, x: Tensor, pairs: Sequence[Pair], activation: Spec | None) -> list[Tensor]:
    """x [..., I] times each packed weight, plus its bias: a call of the operator with the body of that name."""
    weights, biases = [weight for weight, _ in pairs], [bias for _, bias in pairs]
    results: list[Tensor] = _opaque(
        x,
        [weight.words for weight in weights],
        [weight.scale for weight in weights],
        [weight.zero_point for weight in weights],
        biases,
        [weight.length for weight in weights],
        [weight.spec.bits for weight in weights],
        [weight.spec.group_size for weight in weights],
        activation.bits if activation else 0,
        activation.symmetric if activation else False,
        name,
    )
    return results


@torch.library.custom_op("qllm_hf::linear", mutates_args=())
def _opaque(
    x: Tensor,
    words: list[Tensor],
    scales: list[Tensor],
    zero_points: list[Tensor | None],
    biases: list[Tensor | None],
    lengths: list[int],
    bits: list[int],
    group_sizes: list[int],
    activation_bits: int,
    activation_symmetric: bool,
    body: str,
) -> list[Tensor]:
    weights = [
        PackedTensor(
            words[i], scales[i], zero_points[i], Spec(bits[i], group_sizes[i], zero_points[i] is None), lengths[i]
        )
        for i in range(len(words))
    ]
    activation = Spec(activation_bits, PER_ROW, activation_symmetric) if activation_bits else None
    return BODIES[body](x, list(zip(weights, biases, strict=True)), activation)


@_opaque.register_fake
def _(x: Tensor, words: list[Tensor], *rest: object) -> list[Tensor]:
    return [x.new_empty((*x.shape[:-1], matrix.shape[0])) for matrix in words]
