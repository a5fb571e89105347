"""Products of tokens with the experts that were chosen for them.

Which experts are hit is only known at run time, which no compiled graph can follow. So the loop over
experts is one opaque operator while a graph is compiled, and plain torch (with gradients) otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..packed import PackedTensor
from ..scheme import PER_ROW, Spec
from .registry import linear


def expert_product(x: Tensor, experts: Tensor, weight: PackedTensor, activation: Spec | None) -> Tensor:
    """y [N, O]: row n of x [N, I] times the packed matrix of expert `experts[n]`, of weight [E, O, I].

    Only experts that are hit are dequantized, one at a time. Rows of an expert outside 0 .. E-1 (a token that
    belongs to another process) become 0.
    """
    if not torch.compiler.is_compiling():
        return _loop(x, experts, weight, activation)
    spec = weight.spec
    product: Tensor = _opaque(
        x, experts, weight.words, weight.scale, weight.zero_point, weight.length,
        spec.bits, spec.group_size, spec.symmetric, spec.paper_exact,
        activation.bits if activation else 0, activation.symmetric if activation else False,
    )  # fmt: skip
    return product


def _loop(x: Tensor, experts: Tensor, weight: PackedTensor, activation: Spec | None) -> Tensor:
    y = x.new_zeros(x.shape[0], weight.words.shape[1])
    for expert in torch.unique(experts).tolist():
        if 0 <= expert < weight.words.shape[0]:
            rows = torch.where(experts == expert)[0]
            y = y.index_copy(0, rows, linear(x[rows], weight.part(expert), None, activation))
    return y


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
    return _loop(x, experts, weight, activation)


@_opaque.register_fake
def _(x: Tensor, experts: Tensor, words: Tensor, *rest: object) -> Tensor:
    return x.new_empty(x.shape[0], words.shape[1])
