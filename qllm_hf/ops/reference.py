"""The reference: dequantize, then the ordinary product. Every other implementation is compared with it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import ModelError
from ..packed import PackedTensor
from ..scheme import Spec
from ..uniform import fake_quantize


def linear(x: Tensor, weight: PackedTensor, bias: Tensor | None, activation: Spec | None) -> Tensor:
    """x [..., I] times the packed weight [O, I], plus bias [O]: [..., O] in the dtype of x.

    Quantization is simulated: both factors are rounded to their grids and multiplied in floating point,
    as in the study's code.

    Raises:
        ModelError: x holds integers, to which the weight would be rounded.
    """
    if not (x.is_floating_point() or x.is_complex()):
        raise ModelError(
            f"a packed layer was given a tensor of {x.dtype}: it takes floating-point activations, as nn.Linear does."
        )
    if activation is not None:
        x = fake_quantize(x, activation)
    return F.linear(x, weight.decode(x.dtype), bias)
