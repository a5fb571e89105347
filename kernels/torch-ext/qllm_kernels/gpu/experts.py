"""Products of tokens in 16-bit floats with the packed weights of their experts, which only the device knows.

Nothing here waits for the device, and launches do not depend on which experts were chosen: a CUDA graph can hold them.
Few tokens are multiplied one by one, each with the weight of its expert. Of more, several have the same expert: they
are put in the order of experts, and multiplied in blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import weights
from .experts_order import in_order, order_rows
from .experts_tiles import expert_product
from .gate import Gate
from .weights import SUM_SIZE, Config
from .weights_tiles import add_splits

INDEX_TYPES = (torch.int64, torch.int32)


def takes_blocks(tokens: int, experts: int) -> bool:
    """Whether tokens are multiplied in blocks of an expert: where, on average, one is chosen for more than one."""
    return 2 * tokens > max(2, experts)


def default_config(tokens: int, experts: int, outputs: int, length: int, bits: int, group_size: int) -> Config:
    """How to cut the products of tokens with weights [experts, outputs, length], if nobody knows better."""
    weights_read = max(1, min(tokens, experts))
    of_each = -(-tokens // weights_read) if takes_blocks(tokens, experts) else 1
    return weights.default_config(of_each, weights_read * outputs, length, bits, group_size)


def linear(
    x: Tensor,
    chosen: Tensor,
    words: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    *,
    bits: int,
    group_size: int,
    length: int,
    config: Config | None = None,
    ordered: bool | None = None,
) -> Tensor:
    """y [M, O] in the dtype of x: row t is row t of x [M, K] times the packed weight number `chosen[t]` of [E, O, K].

    K is `length`. x may have fewer rows, [M / n, K]: then each is that of n neighbors. chosen int64 or int32 [M]; rows
    whose expert is outside 0 .. E-1 become 0. words int16 [E, O, W], scale [E, O, G] and zero_point uint8 [E, O, G], or
    None for symmetric codes, whose center is 2^(bits - 1). `ordered` replaces what `takes_blocks` says.

    Raises:
        ValueError: `weights.refuses` or `weights.config_fault` says why, or shapes do not fit.
    """
    M, (E, N) = chosen.shape[0], words.shape[:2]
    if ordered is None:
        ordered = takes_blocks(M, E)
    config = config or default_config(M, E, N, length, bits, group_size)
    fault = fault_of_experts(x, chosen, words, scale, zero_point) or weights.config_fault(config)
    if fault is None:
        first = (words[0], scale[0], None if zero_point is None else zero_point[0])
        fault = weights.misfit(x, *first, None, bits, group_size, length)
    if fault is not None:
        raise ValueError(fault)
    y = x.new_empty((M, N))
    if y.numel() == 0:
        return y
    if x.stride(1) != 1 and length > 1:
        x = x.contiguous()
    scale, zero_point = scale.contiguous(), None if zero_point is None else zero_point.contiguous()
    chosen = chosen.contiguous()
    result = y if config.SPLITS == 1 else y.new_empty((config.SPLITS, M, N), dtype=torch.float32)
    order, blocks = in_order(chosen, E, config.BLOCK_M) if ordered else (None, None)
    tiles = (M if blocks is None else blocks.shape[1]) * -(-N // config.BLOCK_N)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        expert_product[(tiles, config.SPLITS)](
            result,
            x,
            chosen,
            order,
            blocks,
            words.contiguous(),
            scale,
            zero_point,
            M,
            N,
            E,
            x.stride(0),
            **weights.constexprs(config, scale, zero_point, bits=bits, group_size=group_size, length=length),
            CHOICES=M // x.shape[0],
            **weights.options(config),
        )
        if config.SPLITS > 1:
            grid = (-(-M * N // SUM_SIZE),)
            add_splits[grid](y, result, None, M * N, N, SPLITS=config.SPLITS, SIZE=SUM_SIZE)
    return y


def fault_of_experts(x: Tensor, chosen: Tensor, words: Tensor, scale: Tensor, zero_point: Tensor | None) -> str | None:
    """Why there is no weight of an expert for each token, or None."""
    if words.dim() != 3 or words.shape[0] == 0:
        return f"words {list(words.shape)}: takes [E, O, W] of one expert or more"
    if chosen.dtype not in INDEX_TYPES or chosen.dim() != 1:
        return f"experts {list(chosen.shape)} of {chosen.dtype}: takes int64 or int32 [M]"
    if chosen.shape[0] % max(1, x.shape[0]) or (chosen.shape[0] and not x.shape[0]):
        return f"{x.shape[0]} tokens for {chosen.shape[0]} experts: takes as many for each"
    if scale.shape[:1] != words.shape[:1] or (zero_point is not None and zero_point.shape != scale.shape):
        zeros = "" if zero_point is None else f" and zero points {list(zero_point.shape)}"
        return f"scales {list(scale.shape)}{zeros}: takes those of {words.shape[0]} experts"
    return None


def _product_gate(bits: int, dtype: str, tokens: int, budget: float) -> Gate:
    """64 experts of 1024 outputs each."""
    config = default_config(tokens, 64, 1024, 4096, bits, 64 if bits < 4 else 128)
    ordered = "i32" if takes_blocks(tokens, 64) else None
    pointers: dict[str, str | None] = {"y": "fp32" if config.SPLITS > 1 else dtype, "x": dtype, "chosen": "i64"}
    pointers |= {"order": ordered, "blocks": ordered, "words": "i16", "scale": dtype, "zero_point": "u8"}
    name = f"experts W{bits} {dtype} {tokens} tokens"
    integers = ("outputs", "experts", "x_stride")
    return weights.tile_gate(name, expert_product, bits, config, pointers, integers, budget, CHOICES=8)


_BUDGETS = {  # instructions per code: tokens one by one, in blocks of 8 and of 128
    2: (1.95, 1.95, 4.0),
    3: (2.9, 2.9, 4.3),
    4: (3.9, 3.9, 4.8),
    8: (7.8, 7.8, 7.8),
}
GATES = (
    *(
        _product_gate(bits, dtype, tokens, budget)
        for dtype in ("bf16", "fp16")
        for bits, budgets in _BUDGETS.items()
        for tokens, budget in zip((8, 512, 8192), budgets, strict=True)
    ),
    Gate(
        "experts in order",
        order_rows,
        {"order": "*i32", "blocks": "*i32", "chosen": "*i64", "rows": "i32", "count": "i32"},
        {"SIZE": 8, "AT_ONCE": 1024},
        wide=False,
    ),
)
