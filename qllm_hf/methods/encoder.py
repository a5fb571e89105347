"""Chooses the codes of a block's weights from what is known of their inputs: what `pack_modules_` asks for each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..method import AwqOptions, GptqOptions
from ..packed import PackedTensor
from ..plan import Entry
from .memory import give_back
from .moments import Inputs, Moments
from .rounding import encode


@dataclass
class Encoder:
    """Chooses the codes of a block's weights from what is known of their inputs."""

    prefix: str
    inputs: Inputs
    dtypes: dict[str, torch.dtype]
    gptq: GptqOptions | None
    awq: AwqOptions | None

    def __call__(self, entry: Entry, matrix: Tensor) -> PackedTensor:
        """The packed form of a float weight [.., O, I]."""
        assert entry.weight is not None
        name = entry.name.removeprefix(f"{self.prefix}.")
        dtype = self.dtypes[name]
        moments = self.inputs.moments.pop(name, None)  # large, and not needed again but by those that share them
        clip = self.gptq or (self.awq if self.awq and not clips_badly(entry.module) else None)
        if matrix.dim() == 3:
            each = moments if isinstance(moments, list) else [None] * matrix.shape[0]
            parts = [self._one(part, one, entry, dtype, clip) for part, one in zip(matrix, each, strict=True)]
            return stacked(parts)
        assert not isinstance(moments, list)
        return self._one(matrix, moments, entry, dtype, clip)

    def _one(
        self,
        matrix: Tensor,
        moments: Moments | None,
        entry: Entry,
        dtype: torch.dtype,
        clip: AwqOptions | GptqOptions | None,
    ) -> PackedTensor:
        assert entry.weight is not None
        give_back()
        # with fewer tokens than columns (a rare expert), what is made up for on them is lost on all others
        gptq = self.gptq if moments is not None and moments.count >= matrix.shape[1] else None
        used_up = not any(other is moments for other in self.inputs.moments.values())
        return encode(matrix.float(), moments, entry.weight, dtype, gptq=gptq, clip=clip, used_up=used_up)


# AWQ's own list: what feeds the product of queries and keys is not clipped.
_QUERIES_AND_KEYS = ("q_", "k_", "query", "key", "Wqkv", "c_attn", "qkv")


def clips_badly(module: str) -> bool:
    """Whether a layer makes queries or keys, which AWQ does not clip: their errors are multiplied with each other."""
    last = module.rpartition(".")[2]
    return any(word in last for word in _QUERIES_AND_KEYS)


def stacked(parts: list[PackedTensor]) -> PackedTensor:
    """Packed matrices of one shape as one packed tensor [E, O, I]."""
    zeros = [part.zero_point for part in parts if part.zero_point is not None]
    return parts[0]._replace(
        words=torch.stack([part.words for part in parts]),
        scale=torch.stack([part.scale for part in parts]),
        zero_point=torch.stack(zeros) if zeros else None,
    )
