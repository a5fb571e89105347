"""GPTQ: columns are rounded one after another, and what each one lost is made up for by those that follow.

The grid of every group is fixed before (`rounding`), and groups stay where the packed format has them: the order
of columns follows falling activation, but a column uses the grid of its own group. So the result is an ordinary
packed weight without a permutation.

Two things are added to the published algorithm. Earlier blocks are rounded already, so a layer reads x where the
float model reads y; what it should put out is W y, and the matrix that comes closest to it on x is W + W D (S +
damping)^-1 with D = sum (y - x) x^T (`toward_float`). And when all columns are done, each is looked at once more with
all others fixed (`refine`), which can only lower the error.

Source: arXiv 2210.17323, algorithm 1; act-order and static groups as in the authors' code. The idea of the first
addition is that of arXiv 2504.02692, here as a plain regression; the second is coordinate descent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import CalibrationError
from ..method import GptqOptions
from ..scheme import Spec

_TRIES = 6
_LARGEST_DOUBLE = 2048
_REGRESSION_DAMPING = 0.1


def gptq_codes(
    matrix: Tensor, second: Tensor, scale: Tensor, zero_point: Tensor, spec: Spec, options: GptqOptions
) -> Tensor:
    """Codes, as floats [O, I], of a matrix [O, I] in float32: what makes the output on the calibration tokens move least.

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


def refine(
    codes: Tensor, matrix: Tensor, second: Tensor, scale: Tensor, zero_point: Tensor, spec: Spec, options: GptqOptions
) -> Tensor:
    """The codes [O, I] after one more look at each column with all others fixed. The arguments are those of `gptq_codes`."""
    codes, top = codes.clone(), 2**spec.bits - 1
    second = second.clone()
    second.diagonal().add_(max(options.damping, 1e-6) * (float(second.diagonal().mean()) or 1.0))
    slope = (matrix - (codes - zero_point) * scale) @ second
    columns = matrix.shape[1]
    for start in range(0, columns, options.block_size):
        end = min(start + options.block_size, columns)
        here, square = slope[:, start:end].clone(), second[start:end, start:end]
        moves = torch.empty_like(here)
        for at in range(end - start):
            old, step, zero = codes[:, start + at], scale[:, start + at], zero_point[:, start + at]
            wanted = (old - zero) * step + here[:, at] / square[at, at]
            new = (torch.round(wanted / step) + zero).clamp(0, top)
            moves[:, at] = (new - old) * step
            here -= moves[:, at].unsqueeze(1) * square[at]
            codes[:, start + at] = new
        slope -= moves @ second[start:end]
    return codes


def toward_float(matrix: Tensor, second: Tensor, drift: Tensor, strength: float) -> Tensor:
    """The matrix [O, I] whose output on the tokens of the rounded model is closest to the float model's.

    Args:
        second: [I, I], the sum of x x^T over what the layer reads.
        drift: [I, I], the sum of (y - x) x^T, y being what it reads in the float model.
        strength: part of the correction that is made. All of it fits the calibration tokens too closely.
    """
    damped = second.clone()
    damped.diagonal().add_(_REGRESSION_DAMPING * (float(damped.diagonal().mean()) or 1.0))
    factor, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        return matrix
    del damped
    correction = torch.cholesky_solve((matrix @ drift).t(), factor).t()
    return matrix + strength * correction


def _inverse_factor(second: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped second moments, in float32.

    Computed in float64 while that is small; damped moments are conditioned well enough for float32 too.

    Raises:
        CalibrationError: the moments are not finite.
    """
    damped = second.to(torch.float64 if len(second) <= _LARGEST_DOUBLE else torch.float32, copy=True)
    mean = float(damped.diagonal().mean())
    if not mean < float("inf"):
        raise CalibrationError("the second moments of a layer's inputs are not finite.")
    # a channel that was never seen keeps its own weights: nothing is known to make up for them
    damped.diagonal().add_(torch.where(damped.diagonal() == 0, mean or 1.0, 0.0))
    for _ in range(_TRIES):
        damped.diagonal().add_(max(damping, 1e-6) * (mean or 1.0))
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            torch.cholesky_inverse(factor, out=factor)
            upper, failed = torch.linalg.cholesky_ex(factor, upper=True)
            if not int(failed):
                return upper.float()
        del factor
        damping = max(damping, 1e-6) * 10
    raise CalibrationError("the second moments of a layer's inputs cannot be inverted, however much they are damped.")
