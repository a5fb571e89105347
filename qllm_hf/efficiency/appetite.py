"""What a run of any batch and length will take, found by short runs: no formula knows what an architecture keeps.

Runs of different lengths allocate the same tensors in the same order, only larger. So each point of a run is followed
on its own: with the length it grows like a square at most (the scores of attention, where a model keeps them as a
matrix), with the batch in proportion, but for what is there once, such as an unpacked weight. The highest point of a
long run need not be that of a short one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .cells import Case
from .measure import prompts, run_once
from .memory import levels_of

_LONGEST: Final = 128
"""Tokens of the longest of the short runs; the others have a half and a quarter."""
_MARGIN: Final = 1.25
"""Kernels change with the size, and libraries keep buffers of their own."""
_WIDER: Final = 1.5
"""The margin where runs allocate different tensors, as experts may make them do, and only peaks are known."""
_BATCH: Final = 2
"""Sequences in a short run: with one, some tensors are views that are copies with more."""


@dataclass(frozen=True, eq=False)
class Appetite:
    """Bytes beside the weights, as far as short runs tell.

    Attributes:
        lengths: tokens of three runs of two sequences, from short to long.
        levels: float64 [3, points], bytes at each point of these runs.
        twice: float64 [points], of the shortest run with four sequences.
        margin: by how much more is said than was found.
    """

    lengths: tuple[int, int, int]
    levels: Tensor
    twice: Tensor
    margin: float = _MARGIN

    @classmethod
    def of(cls, model: PreTrainedModel, longest: int) -> Appetite:
        """The appetite of a loaded model on the CPU, from four runs of at most `longest` tokens each."""
        top = max(min(longest - 1, _LONGEST), 4)
        lengths = (top // 4, top // 2, top)

        def levels(batch: int, length: int) -> list[int]:
            case = Case(batch, length, 2)
            ids = prompts(model, case)
            run_once(model, ids, case)  # what is made once and kept is no part of a run
            return levels_of(lambda: run_once(model, ids, case))[1]

        found = [*(levels(_BATCH, length) for length in lengths), levels(2 * _BATCH, lengths[0])]
        margin = _MARGIN
        if len({len(each) for each in found}) > 1:
            found, margin = [[max(each)] for each in found], _WIDER
        points = torch.tensor(found, dtype=torch.float64)
        return cls(lengths, points[:3], points[3], margin)

    def bytes(self, case: Case) -> int:
        """What a run will take beside the weights, with a margin."""
        (a, b, c), (low, middle, high) = self.lengths, self.levels
        first, second = (middle - low) / (b - a), (high - middle) / (c - b)
        square = ((second - first) / (c - a)).clamp(min=0)
        slope = torch.where(square > 0, first, torch.maximum(first, second)).clamp(min=0)
        tokens = max(case.tokens - 1, a)  # a short run of n tokens has n + 1 in the cache
        level = low + slope * (tokens - a) + square * (tokens - a) * (tokens - b)
        once = (2 * low - self.twice).clamp(min=0)
        most = once + case.batch / _BATCH * torch.maximum(level, low).sub(once).clamp(min=0)
        return int(self.margin * float(most.max()))
