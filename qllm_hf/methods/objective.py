"""How far a layer's output moves when its weight is rounded: what scales, clips and codes are chosen by.

For the tokens X [T, I] that were seen and an error E [O, I] of the weight,

    ||X E^T||^2 = sum over o of E_o (X^T X) E_o^T,

so the second moments stand for all tokens at once, exactly, at a cost that does not grow with their number. Where
the input is rounded too, that is no quadratic form any more, and a sample of the tokens is multiplied instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..scheme import Spec
from ..uniform import fake_quantize
from .moments import Moments


@dataclass(frozen=True)
class Reader:
    """One weight matrix that reads a channel, and how it will be quantized.

    Attributes:
        matrix: float32 [O, I].
        moments: of what it reads.
        weight: how the matrix is quantized.
        activation: how its input is quantized, or None.
    """

    matrix: Tensor
    moments: Moments
    weight: Spec
    activation: Spec | None

    def loss(self, scale: Tensor | None = None) -> float:
        """Sum over all tokens of the squared error of the output, if columns are multiplied by scale [I] and inputs
        divided by it."""
        scaled = self.matrix if scale is None else self.matrix * scale
        rounded = fake_quantize(scaled, self.weight)
        if self.activation is None:
            error = rounded - scaled
            if scale is not None:
                error = error / scale
            return quadratic(error, self.moments.second)
        tokens = self.moments.sample
        moved = tokens if scale is None else tokens / scale
        difference = fake_quantize(moved, self.activation) @ rounded.t() - tokens @ self.matrix.t()
        return float(difference.square().sum()) * self.moments.count / max(len(tokens), 1)


def quadratic(error: Tensor, second: Tensor) -> float:
    """sum over o of E_o S E_o^T for E [O, I] and S [I, I]."""
    return float(torch.sum((error @ second) * error))
