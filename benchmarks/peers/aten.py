"""torch's own products with few bits on a CPU: those that the libraries built on torch call."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from qllm_hf.scheme import FLOAT_BITS, PER_ROW

from .method import Method, check_groups

Int4 = tuple[Tensor, Tensor, "Tensor | None"]
Int8 = tuple[Tensor, Tensor]
EIGHT = 8


def int4_pack(weight: Tensor, group_size: int) -> Int4:
    """Packed codes, scales and zeros in torch's layout, and plain codes, which mean (code - 8) scale + zero."""
    check_groups(weight, group_size)
    groups = weight.view(weight.shape[0], -1, group_size)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / 15).bfloat16().float()
    zero = (low + 8 * scale).bfloat16().float()
    codes = ((groups - zero) / scale + 8).round().clamp(0, 15).to(torch.int32).view_as(weight)
    scales_and_zeros = torch.cat((scale, zero), -1).transpose(0, 1).contiguous().bfloat16()  # [G, N, 2]
    return torch._convert_weight_to_int4pack_for_cpu(codes, 1), scales_and_zeros, codes.to(torch.uint8)


def int4_meant(state: Int4, group_size: int) -> Tensor:
    """The weight that the codes mean, float32 [N, K]."""
    assert state[2] is not None, "copies carry no plain codes"
    scale, zero = state[1].float().transpose(0, 1).repeat_interleave(group_size, 1).unbind(-1)
    return (state[2].float() - 8) * scale + zero


def clone_int4(state: Int4) -> Int4:
    """What the product reads, at other addresses."""
    return state[0].clone(), state[1].clone(), None


def int8_pack(weight: Tensor) -> Int8:
    """Codes int8 [N, K] and scales bfloat16 [N], symmetric per channel."""
    scale = (weight.abs().amax(-1) / 127).bfloat16()
    codes = (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return codes, scale


def int8_meant(state: Int8) -> Tensor:
    """The weight that the codes mean, float32 [N, K]."""
    return state[0].float() * state[1].float()[:, None]


def int_mm(state: Int8, x: Tensor) -> Tensor:
    """The product of integers, with activations that were quantized before the clock started."""
    return torch._int_mm(x, state[0].t())


def int_mm_dynamic(state: Int8, x: Tensor) -> Tensor:
    """Quantize each token to 8 bits, multiply integers, scale: y bfloat16 [M, N]."""
    scale = x.abs().amax(-1, keepdim=True).float() / 127
    codes = (x / scale).round().to(torch.int8)
    return (torch._int_mm(codes, state[0].t()) * scale * state[1]).bfloat16()


def token_codes(x: Tensor) -> Tensor:
    """int8 [M, K] of bfloat16 tokens, on one grid of 1/32."""
    return (x.float() * 32).round().clamp(-127, 127).to(torch.int8)


def methods() -> list[Method]:
    """All of them."""
    int4 = [
        Method(
            f"aten int4pack g{group_size}", "torch", "torch", "torch", 4, group_size, FLOAT_BITS,
            partial(int4_pack, group_size=group_size),
            lambda state, x, g=group_size: torch._weight_int4pack_mm_for_cpu(x, state[0], g, state[1]),
            meant=partial(int4_meant, group_size=group_size), clone=clone_int4,
        )
        for group_size in (32, 64, 128)
    ]  # fmt: skip
    weight_only = Method(
        "aten int8pack per channel", "torch", "torch", "torch", EIGHT, PER_ROW, FLOAT_BITS,
        int8_pack, lambda state, x: torch._weight_int8pack_mm(x, *state), meant=int8_meant,
    )  # fmt: skip
    integers = Method(
        "aten _int_mm, integers only", "torch", "torch", "torch", EIGHT, PER_ROW, EIGHT,
        int8_pack, int_mm, meant=lambda state: state[0].float(), inputs=token_codes,
        rounded=lambda x: token_codes(x).float(), scaled=False,
    )  # fmt: skip
    dynamic = Method(
        "aten _int_mm with per-token quantization", "torch", "torch", "torch", EIGHT, PER_ROW, EIGHT,
        int8_pack, int_mm_dynamic, meant=int8_meant,
    )  # fmt: skip
    return [*int4, weight_only, integers, dynamic]
