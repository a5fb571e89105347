"""AutoRound's CPU kernels (the package auto-round-lib), called as its own quantized layer calls them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .method import Method, check_groups, need


@dataclass(frozen=True)
class Blob:
    """A packed weight [N, K]. `settings` are the arguments that repacking and product share."""

    packed: Tensor
    bias: Tensor
    shape: tuple[int, int]
    settings: tuple[Any, ...]

    def nbytes(self) -> int:
        return self.packed.numel()


def pack(weight: Tensor, bits: int, group_size: int, compute: str) -> Blob:
    """Round to nearest, asymmetric, but symmetric at 8 bits, as its kernels want. Scales float32, as in its layer."""
    library = need("auto_round_kernel")
    check_groups(weight, group_size)
    groups = weight.view(weight.shape[0], -1, group_size)
    asymmetric = bits < 8
    half = 2 ** (bits - 1)
    if asymmetric:
        low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
        scale = (high - low) / (2 * half - 1)
        zero = (-low / scale).round() - half
    else:
        scale = groups.abs().amax(-1, keepdim=True) / (half - 1)
        zero = torch.zeros_like(scale)
    codes = ((groups / scale).round() + zero).clamp(-half, half - 1).to(torch.int8)
    settings = (group_size, compute, f"int{bits}", "fp32", asymmetric)
    packed = library.repack_quantized_weight(
        codes.view_as(weight).t().contiguous(),
        scale.squeeze(-1).t().contiguous(),
        zero.squeeze(-1).t().to(torch.int8).contiguous(),
        *settings,
    )
    return Blob(packed, torch.empty(0), (weight.shape[0], weight.shape[1]), settings)


def meant(blob: Blob) -> Tensor:
    """The weight that its codes mean, float32 [N, K], as the library unpacks it."""
    found: Tensor = need("auto_round_kernel").unpack_weight(blob.packed, torch.float32, *blob.shape, *blob.settings)
    return found


def run(blob: Blob, x: Tensor) -> Tensor:
    """y bfloat16 [M, N], with the two casts that its layer makes."""
    y: Tensor = need("auto_round_kernel").woqgemm(x.float(), blob.packed, blob.bias, *blob.shape, *blob.settings)
    return y.bfloat16()


def methods() -> list[Method]:
    """All of them; "auto" is what its layer asks for: 8-bit integers where the processor multiplies them."""
    rows = ((2, 128, "auto"), (3, 128, "auto"), (4, 32, "auto"), (4, 128, "auto"), (4, 128, "bf16"), (8, 128, "auto"))
    return [
        Method(
            f"AutoRound int{bits} g{group_size} compute {compute}", "AutoRound", "auto_round_kernel", "auto-round-lib",
            bits, group_size, 16 if compute == "bf16" else 8,
            partial(pack, bits=bits, group_size=group_size, compute=compute), run, meant=meant,
        )
        for bits, group_size, compute in rows
    ]  # fmt: skip
