"""Products of integers with the packed weights of experts, for tokens that are quantized.

As experts.py does it, with the arithmetic of integers.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import integers
from .experts import fault_of_experts, takes_blocks
from .experts_order import in_order
from .experts_tiles import expert_product_of_integers
from .gate import Gate
from .integers import Config
from .planar import BLOCK, in_blocks
from .tokens import Tokens
from .weights import SUM_SIZE
from .weights_tiles import add_splits

_MOST_TOKENS = 64  # of a tile: which tokens these are has to be kept in registers, too


def default_config(tokens: int, experts: int, outputs: int, length: int, bits: int, group_size: int) -> Config:
    """How to cut the products of tokens with weights [experts, outputs, length], if nobody knows better."""
    weights_read = max(1, min(tokens, experts))
    of_each = min(_MOST_TOKENS, -(-tokens // weights_read)) if takes_blocks(tokens, experts) else 1
    return integers.default_config(of_each, weights_read * outputs, length, bits, group_size)


def multiply(
    tokens: Tokens,
    chosen: Tensor,
    words: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    *,
    bits: int,
    group_size: int,
    config: Config | None = None,
    ordered: bool | None = None,
) -> Tensor:
    """As `experts.linear`, for tokens that are quantized, with `integers.sums_over` for a weight: y [M, O].

    Raises:
        ValueError: `integers.refuses` or `weights.config_fault` says why, or shapes do not fit.
    """
    M, (E, N), length = chosen.shape[0], words.shape[:2], tokens.length
    if ordered is None:
        ordered = takes_blocks(M, E)
    config = config or default_config(M, E, N, length, bits, group_size)
    fault = fault_of_experts(tokens.codes, chosen, words, scale, zero_point)
    fault = fault or integers.config_fault(config, length)
    if fault is None:
        first = (words[0], scale[0], None if zero_point is None else zero_point[0])
        fault = integers._fault(tokens, *first, bits, group_size)
    if fault is not None:
        raise ValueError(fault)
    y = tokens.scale.new_empty((M, N))
    if y.numel() == 0:
        return y
    chosen = chosen.contiguous()
    span = integers._span(bits, group_size, length, tokens.bits)
    last = integers._zero_points_last(bits, zero_point is not None, span, config)
    with_sums = last and integers._has_sums(tokens, span)
    result = y if config.SPLITS == 1 else y.new_empty((config.SPLITS, M, N), dtype=torch.float32)
    order, blocks = in_order(chosen, E, config.BLOCK_M) if ordered else (None, None)
    tiles = (M if blocks is None else blocks.shape[1]) * -(-N // config.BLOCK_N)
    with torch.cuda.device_of(words):  # Triton launches on the current device
        expert_product_of_integers[(tiles, config.SPLITS)](
            result,
            tokens.codes,
            tokens.scale,
            tokens.zero_point,
            tokens.sums if with_sums else None,
            chosen,
            order,
            blocks,
            words.contiguous(),
            scale.contiguous(),
            None if zero_point is None else zero_point.contiguous(),
            M,
            N,
            E,
            **_constexprs(config, bits, group_size, length, span),
            CHOICES=M // tokens.codes.shape[0],
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        if config.SPLITS > 1:
            grid = (-(-M * N // SUM_SIZE),)
            add_splits[grid](y, result, None, M * N, N, SPLITS=config.SPLITS, SIZE=SUM_SIZE)
    return y


def _constexprs(config: Config, bits: int, group_size: int, length: int, span: int) -> dict[str, int]:
    return {
        "LENGTH": length,
        "BITS": bits,
        "GROUP_SIZE": group_size if group_size > 0 else in_blocks(length),
        "SPAN": span,
        "AT_ONCE": integers._at_once(config, length),
        "BLOCK_N": config.BLOCK_N,
        "BLOCK_M": config.BLOCK_M,
        "SPLITS": config.SPLITS,
    }


def _gate(bits: int, group_size: int, tokens: int) -> Gate:
    """64 experts of 1024 outputs each, and zero points on both sides."""
    length = 4096
    config = default_config(tokens, 64, 1024, length, bits, group_size)
    ordered = "*i32" if takes_blocks(tokens, 64) else None
    pointers: dict[str, str | None] = {
        "y": "*fp32" if config.SPLITS > 1 else "*bf16",
        "codes": "*i8",
        "x_scale": "*bf16",
        "x_zero": "*i32",
    }
    span = integers._span(bits, group_size, length, 8)
    with_sums = integers._zero_points_last(bits, True, span, config)
    pointers |= {"x_sums": "*i32" if with_sums else None, "chosen": "*i64", "order": ordered, "blocks": ordered}
    pointers |= {"words": "*i16", "scale": "*bf16", "zero_point": "*u8"}
    there = {name: kind for name, kind in pointers.items() if kind is not None}
    return Gate(
        f"experts W{bits}A8 g{group_size} {tokens} tokens",
        expert_product_of_integers,
        {**there, **dict.fromkeys(("tokens", "outputs", "experts"), "i32")},
        {
            **_constexprs(config, bits, group_size, length, span),
            "CHOICES": 1,
            **dict.fromkeys(pointers.keys() - there.keys()),
        },
        elements=config.BLOCK_N * BLOCK.value * integers._at_once(config, length),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
        expects="IMMA" if config.BLOCK_M == 8 else "IGMMA",
        budget=integers.PRODUCTS if tokens >= 64 * 128 else integers.MEMORY * bits,
        divisible=("outputs", "experts"),
        targets=("cuda:90",),
    )


GATES = (
    _gate(2, 128, 8),
    _gate(3, 128, 8),
    _gate(4, 128, 8),
    _gate(4, 128, 512),
    _gate(4, 128, 8192),
    _gate(8, 128, 8),
    _gate(8, -1, 8192),
)
