"""What products with packed weights should be, in float32 and piece by piece: what trials compare kernels with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..packed import PackedTensor, decode_reference
from ..scheme import Spec
from ..trials import difference, ends
from ..uniform import fake_quantize
from .graph import Pair

_PIECE = 2**22  # elements of a weight that are decoded at a time
_ROWS = 32  # of a product of experts that are looked at


def fault_of_products(found: Sequence[Tensor], x: Tensor, pairs: Sequence[Pair], activation: Spec | None) -> str | None:
    """What is wrong with the products [..., O] of x [..., I] and each weight, or None.

    Raises:
        Untestable: one should not be finite.
    """
    vectors = _exact(ends(x), activation)
    for y, (weight, bias) in zip(found, pairs, strict=True):
        wrong = difference(ends(y), _product(vectors, weight, bias))
        if wrong is not None:
            return wrong
    return None


def fault_of_experts(
    found: Tensor, x: Tensor, experts: Tensor, weight: PackedTensor, activation: Spec | None
) -> str | None:
    """As `fault_of_products`, for rows [N, O] of `found` with the weights [E, O, I] of experts [N]."""
    rows = torch.linspace(0, experts.shape[0] - 1, min(_ROWS, experts.shape[0])).long().tolist()
    choices = max(1, experts.shape[0] // max(1, x.shape[0]))
    for row in rows:
        expert, wanted = int(experts[row]), torch.zeros_like(found[row : row + 1], dtype=torch.float32)
        if 0 <= expert < weight.words.shape[0]:
            wanted = _product(_exact(x[row // choices][None], activation), weight.part(expert), None)
        wrong = difference(found[row : row + 1], wanted)
        if wrong is not None:
            return wrong
    return None


def _exact(x: Tensor, activation: Spec | None) -> Tensor:
    return (x if activation is None else fake_quantize(x, activation)).float()


def _product(x: Tensor, weight: PackedTensor, bias: Tensor | None) -> Tensor:
    at_once = max(1, _PIECE // weight.length)
    pieces = [weight.part(slice(start, start + at_once)) for start in range(0, weight.words.shape[0], at_once)]
    y = torch.cat([F.linear(x, decode_reference(piece, torch.float32)) for piece in pieces], -1)
    return y if bias is None else y + bias.float()
