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
_LEAST_DAMPING = 1e-6
PIECE = 512
"""Rows that are rounded in one go: enough for efficient products, few enough to be small beside the moments."""


class Gptq:
    """Rounds matrices that read the same inputs.

    Rows do not depend on each other, so a large matrix may be given piece by piece; what depends on the inputs alone is
    computed once.

    Args:
        second: [I, I], second moments of the inputs, in float32.
    """

    def __init__(self, second: Tensor, options: GptqOptions) -> None:
        self._options = options
        self._order: Tensor | None = None
        if options.act_order:
            self._order = torch.argsort(second.diagonal(), descending=True, stable=True)
            second = second[self._order[:, None], self._order]
        self._upper = _inverse_factor(second, options.damping)
        self._second = second

    def codes(self, matrix: Tensor, scale: Tensor, zero_point: Tensor, spec: Spec) -> Tensor:
        """Codes, as floats [O, I], of a matrix [O, I] in float32: what moves its output on the tokens least.

        Args:
            scale, zero_point: of each element, [O, I].
        """
        order = self._order
        if order is not None:
            matrix, scale, zero_point = matrix[:, order], scale[:, order], zero_point[:, order]
        size, top = self._options.block_size, 2**spec.bits - 1
        codes = gptq_codes(matrix, self._upper, scale, zero_point, top, size)
        if self._options.refine:
            codes = refine(codes, matrix, self._second, scale, zero_point, top, size, self._options.damping)
        if order is None:
            return codes
        restored = torch.empty_like(codes)
        restored[:, order] = codes
        return restored


def gptq_codes(matrix: Tensor, upper: Tensor, scale: Tensor, zero_point: Tensor, top: int, block_size: int) -> Tensor:
    """Codes [O, I] by algorithm 1, columns from left to right.

    Args:
        upper: [I, I], the upper Cholesky factor of the inverse of the damped second moments.
        top: the largest code.
    """
    weights = matrix.clone()
    codes = torch.empty_like(weights)
    columns = weights.shape[1]
    for start in range(0, columns, block_size):
        end = min(start + block_size, columns)
        block, factor = weights[:, start:end], upper[start:end, start:end]
        errors = torch.empty_like(block)
        for at in range(end - start):
            column, step, zero = block[:, at], scale[:, start + at], zero_point[:, start + at]
            code = (torch.round(column / step) + zero).clamp(0, top)
            error = (column - (code - zero) * step) / factor[at, at]
            block[:, at:] -= error.unsqueeze(1) * factor[at, at:]
            codes[:, start + at], errors[:, at] = code, error
        weights[:, end:] -= errors @ upper[start:end, end:]
    return codes


def refine(
    codes: Tensor,
    matrix: Tensor,
    second: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    top: int,
    block_size: int,
    damping: float,
) -> Tensor:
    """The codes [O, I] after one more look at each column with all others fixed."""
    codes = codes.clone()
    extra = max(damping, _LEAST_DAMPING) * (float(second.diagonal().mean()) or 1.0)
    difference = matrix - (codes - zero_point) * scale
    slope = difference @ second + extra * difference
    columns = matrix.shape[1]
    for start in range(0, columns, block_size):
        end = min(start + block_size, columns)
        here, square = slope[:, start:end].clone(), second[start:end, start:end].clone()
        square.diagonal().add_(extra)
        moves = torch.empty_like(here)
        for at in range(end - start):
            old, step, zero = codes[:, start + at], scale[:, start + at], zero_point[:, start + at]
            wanted = (old - zero) * step + here[:, at] / square[at, at]
            new = (torch.round(wanted / step) + zero).clamp(0, top)
            moves[:, at] = (new - old) * step
            here -= moves[:, at].unsqueeze(1) * square[at]
            codes[:, start + at] = new
        slope -= moves @ second[start:end]
        slope[:, start:end] -= extra * moves
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
    rows = [part + strength * torch.cholesky_solve((part @ drift).t(), factor).t() for part in matrix.split(PIECE)]
    return torch.cat(rows)


def _inverse_factor(second: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped second moments, in float32.

    Computed in float64 while that is small; damped moments are conditioned well enough for float32 too.

    Raises:
        CalibrationError: the moments are not finite.
    """
    dtype = torch.float64 if len(second) <= _LARGEST_DOUBLE else torch.float32
    mean = float(second.diagonal().mean())
    if not mean < float("inf"):
        raise CalibrationError("the second moments of a layer's inputs are not finite.")
    # a channel that was never seen keeps its own weights: nothing is known to make up for them
    unseen = torch.where(second.diagonal() == 0, mean or 1.0, 0.0)
    for _ in range(_TRIES):
        damping = max(damping, _LEAST_DAMPING)
        damped = second.to(dtype, copy=True)
        damped.diagonal().add_(unseen + damping * (mean or 1.0))
        factor, failed = torch.linalg.cholesky_ex(damped)
        del damped  # each of these is as large as the moments
        if not int(failed):
            torch.cholesky_inverse(factor, out=factor)
            upper, failed = torch.linalg.cholesky_ex(factor, upper=True)
            if not int(failed):
                result: Tensor = upper.float()
                return result
        damping *= 10
    raise CalibrationError("the second moments of a layer's inputs cannot be inverted, however much they are damped.")
