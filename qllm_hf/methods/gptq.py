"""GPTQ: columns are rounded one after another, and what each one lost is made up for by those that follow.

The grid of every group is fixed before (`rounding`), and groups stay where the packed format has them: the order
of columns follows falling activation, but a column uses the grid of its own group. So the result is an ordinary
packed weight without a permutation.

Source: arXiv 2210.17323, algorithm 1; act-order and static groups as in the authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import CalibrationError
from ..method import GptqOptions
from ..scheme import Spec

_TRIES = 6


def gptq_codes(
    matrix: Tensor, second: Tensor, scale: Tensor, zero_point: Tensor, spec: Spec, options: GptqOptions
) -> Tensor:
    """Codes, as floats [O, I], of a matrix [O, I] in float32.

    Args:
        second: [I, I], second moments of the inputs.
        scale, zero_point: of each element, [O, I].
    """
    weights, top = matrix.clone(), 2**spec.bits - 1
    diagonal = second.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True) if options.act_order else None
    if order is not None:
        weights, second = weights[:, order], second[order][:, order]
        scale, zero_point = scale[:, order], zero_point[:, order]
    upper = _inverse_factor(second, options.damping)
    codes = torch.empty_like(weights)
    columns = weights.shape[1]
    for start in range(0, columns, options.block_size):
        end = min(start + options.block_size, columns)
        block, factor = weights[:, start:end], upper[start:end, start:end]
        errors = torch.empty_like(block)
        for at in range(end - start):
            column, step, zero = block[:, at], scale[:, start + at], zero_point[:, start + at]
            code = (torch.round(column / step) + zero).clamp(0, top)
            error = (column - (code - zero) * step) / factor[at, at]
            block[:, at:] -= error.unsqueeze(1) * factor[at, at:]
            codes[:, start + at], errors[:, at] = code, error
        weights[:, end:] -= errors @ upper[start:end, end:]
    if order is None:
        return codes
    restored = torch.empty_like(codes)
    restored[:, order] = codes
    return restored


def _inverse_factor(second: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped second moments, in float32; computed in float64.

    Raises:
        CalibrationError: the moments are not finite.
    """
    damped = second.double()
    mean = float(damped.diagonal().mean())
    if not mean < float("inf"):
        raise CalibrationError("the second moments of a layer's inputs are not finite.")
    # a channel that was never seen keeps its own weights: nothing is known to make up for them
    damped.diagonal().add_(torch.where(damped.diagonal() == 0, mean or 1.0, 0.0))
    for _ in range(_TRIES):
        damped.diagonal().add_(max(damping, 1e-6) * (mean or 1.0))
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            inverse = torch.cholesky_inverse(factor)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not int(failed):
                return upper.float()
        damping = max(damping, 1e-6) * 10
    raise CalibrationError("the second moments of a layer's inputs cannot be inverted, however much they are damped.")
