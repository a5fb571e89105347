"""From a float matrix to codes: the range of each group is chosen, then each element is rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from ..method import AwqOptions, GptqOptions
from ..packed import PackedTensor
from ..packing import pack
from ..scheme import PER_TENSOR, Spec
from ..uniform import affine_params, choose_codes, group, ungroup
from .gptq import PIECE, Gptq, toward_float
from .moments import Moments

_LEAST_WEIGHT = 0.01
_PIECE = 2**22
"""Elements that the search for ranges looks at in one go."""


def encode(
    matrix: Tensor,
    moments: Moments | None,
    spec: Spec,
    scale_dtype: torch.dtype,
    *,
    gptq: GptqOptions | None = None,
    clip: AwqOptions | GptqOptions | None = None,
    limits: Tensor | None = None,
    used_up: bool = False,
) -> PackedTensor:
    """The packed form of a matrix [O, I] in float32.

    Args:
        moments: of the inputs; None if nothing is known of them.
        gptq: round with GPTQ; None rounds to nearest.
        clip: search for ranges; None takes each group's own extremes.
        limits: [O, G], ranges that are known already: elements are clipped to plus and minus this.
        used_up: nobody needs the moments after this, so parts of them may be dropped on the way.
    """
    second = moments.second if moments is not None and moments.count else None
    if gptq is not None and second is not None and moments is not None and moments.drift is not None:
        matrix = toward_float(matrix, second, moments.drift, gptq.correction)
        if used_up:
            moments.drift = None
    if spec.paper_exact:  # the published arithmetic is that of the stored dtype
        matrix = matrix.to(scale_dtype)
    if limits is None and clip is not None and clip.clip and second is not None and spec.group_size != PER_TENSOR:
        limits = search_limits(matrix.float(), second, spec, clip.clip_steps, clip.clip_least)
    groups = group(matrix, spec)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    if limits is not None:
        bound = limits.unsqueeze(-1).to(low)
        low, high = torch.maximum(low, -bound), torch.minimum(high, bound)
    scale, zero_point = affine_params(groups, spec, low, high, scale_dtype)
    if gptq is None or second is None:
        steps = choose_codes(groups, scale, zero_point, spec)
        codes = ungroup(steps, matrix.shape, spec)
    else:
        solver = Gptq(second, gptq)
        pieces = matrix.float().split(PIECE)
        scales, zeros_of = (_each_element(part, matrix.shape, spec).split(PIECE) for part in (scale, zero_point))
        codes = torch.cat([solver.codes(*piece, spec) for piece in zip(pieces, scales, zeros_of, strict=True)])
    zeros = None if spec.symmetric else zero_point.squeeze(-1).to(torch.uint8)
    return PackedTensor(pack(codes.to(torch.uint8), spec.bits), scale.squeeze(-1), zeros, spec, matrix.shape[1])


def _each_element(part: Tensor, shape: torch.Size, spec: Spec) -> Tensor:
    """Scales or zero points of groups [O, G, 1] as those of the elements [O, I], in float32."""
    rows, columns = shape
    if spec.group_size == PER_TENSOR:
        return part.float().reshape(1, 1).expand(rows, columns)
    size = spec.group_size if spec.group_size > 0 else columns
    return part.float().squeeze(-1).repeat_interleave(size, -1)[:, :columns]


def search_limits(matrix: Tensor, second: Tensor, spec: Spec, steps: int, least: float) -> Tensor:
    """[O, G]: for each group the largest magnitude that is kept, found on a grid from all of it down to `least`.

    Compared is the error of the group's own part of the output, as in AWQ's code, but over all calibration tokens.
    """
    rows = matrix.shape[0]
    size = group(matrix[:1], spec).shape[-1]
    blocks = _diagonal_blocks(second, size)
    # a channel that was never seen must not look as if clipping it cost nothing
    blocks.diagonal(dim1=1, dim2=2).add_(_LEAST_WEIGHT * second.diagonal().mean())
    step = max(1, _PIECE // max(matrix.shape[1], 1))
    return torch.cat(
        [_limits(group(matrix[i : i + step], spec), blocks, spec, steps, least) for i in range(0, rows, step)]
    )


def _limits(groups: Tensor, blocks: Tensor, spec: Spec, steps: int, least: float) -> Tensor:
    largest = groups.abs().amax(-1, keepdim=True)  # [O, G, 1]
    best, smallest = largest.clone(), torch.full_like(largest, float("inf"))
    for index in range(max(1, round(steps * (1 - least)))):
        bound = largest * (1 - index / steps)
        clipped = torch.minimum(torch.maximum(groups, -bound), bound)
        scale, zero_point = affine_params(clipped, spec)
        error = (choose_codes(clipped, scale, zero_point, spec) - zero_point) * scale - groups
        cost = (torch.einsum("ogi,gij->ogj", error, blocks) * error).sum(-1, keepdim=True)
        better = cost < smallest
        best, smallest = torch.where(better, bound, best), torch.where(better, cost, smallest)
    return best.squeeze(-1)


def _diagonal_blocks(second: Tensor, size: int) -> Tensor:
    """[G, size, size]: the parts of the second moments [I, I] within one group, filled with zeros at the end."""
    missing = -second.shape[0] % size
    padded = torch.nn.functional.pad(second, (0, missing, 0, missing))
    count = padded.shape[0] // size
    return padded.view(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
