"""Products of the same tokens with several packed weights at once: queries, keys and values, or gate and up projection.

With few tokens a launch takes about as long as a product does, and a small weight has too few tiles for the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from .gate import Gate
from .weights import SUM_SIZE, Config, config_fault, constexprs, default_config, linear, misfit, options, tile_gate
from .weights_many_tiles import add_splits_many, product_many

Packed = tuple[Tensor, Tensor, "Tensor | None", "Tensor | None"]  # words, scale, zero points and bias of a weight
AnyOrNone = TypeVar("AnyOrNone")
AT_ONCE = 3


def linear_many(
    x: Tensor,
    weights: Sequence[Packed],
    *,
    bits: int,
    group_size: int,
    length: int,
    config: Config | None = None,
) -> list[Tensor]:
    """As `weights.linear` for several weights of one format that share x [M, K]: a list of [M, N].

    Three at a time, in one launch, and one more if programs share a tile. One by one where some of them have zero
    points, a bias or another type of scales, and others have not. With the same config numbers are the same.

    Raises:
        ValueError: as `weights.linear`.
    """
    alone = partial(linear, bits=bits, group_size=group_size, length=length, config=config)
    results: list[Tensor] = []
    for start in range(0, len(weights), AT_ONCE):
        some = weights[start : start + AT_ONCE]
        outputs = sum(words.shape[0] for words, *_ in some)
        chosen = config or default_config(x.shape[0], outputs, length, bits, group_size)
        if not _alike(some) or not outputs or not x.shape[0]:
            results += [alone(x, *each[:3], bias=each[3]) for each in some]
            continue
        faults = [misfit(x, *each, bits, group_size, length) for each in some]
        for fault in (*faults, config_fault(chosen)):
            if fault is not None:
                raise ValueError(fault)
        constants = [constexprs(chosen, *each[1:3], bits=bits, group_size=group_size, length=length) for each in some]
        if constants.count(constants[0]) == len(some):
            results += _at_once(x, some, chosen, constants[0])
        else:  # the zero points of some do not lie in words
            results += [alone(x, *each[:3], bias=each[3]) for each in some]
    return results


def _alike(weights: Sequence[Packed]) -> bool:
    """Whether several weights have their parts in common, and these their types."""
    kinds = {
        (scale.dtype, zero_point is None, None if bias is None else bias.dtype)
        for _, scale, zero_point, bias in weights
    }
    return len(weights) > 1 and len(kinds) == 1


def _at_once(x: Tensor, weights: Sequence[Packed], config: Config, constants: dict[str, int]) -> list[Tensor]:
    M, outputs = x.shape[0], [words.shape[0] for words, *_ in weights]
    y = [x.new_empty((M, N)) for N in outputs]
    if x.stride(1) != 1 and x.shape[1] > 1:
        x = x.contiguous()
    parts = y
    if config.SPLITS > 1:
        room = x.new_empty(config.SPLITS * M * sum(outputs), dtype=torch.float32)
        parts = list(room.split([config.SPLITS * M * N for N in outputs]))
    words, scales, zero_points, biases = ([_contiguous(part) for part in each] for each in zip(*weights, strict=True))
    tiles = -(-M // config.BLOCK_M) * sum(-(-N // config.BLOCK_N) for N in outputs)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        product_many[(tiles, config.SPLITS)](
            *_three(parts),
            x,
            *_three(words),
            *_three(scales),
            *_three(zero_points),
            *_three(biases),
            M,
            *_three(outputs),
            x.stride(0),
            **constants,
            **options(config),
        )
        if config.SPLITS > 1:
            add_splits_many[(sum(-(-M * N // SUM_SIZE) for N in outputs),)](
                *_three(y),
                *_three(parts),
                *_three(biases),
                M,
                *_three(outputs),
                SPLITS=config.SPLITS,
                SIZE=SUM_SIZE,
            )
    return y


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _three(values: Sequence[AnyOrNone]) -> list[AnyOrNone | None]:
    return [*values, *[None] * (AT_ONCE - len(values))]


def _gate(bits: int, tokens: int, budget: float, count: int = AT_ONCE) -> Gate:
    config = default_config(tokens, 4096, 4096, bits, 64 if bits < 4 else 128)
    kinds = {"y": "fp32" if config.SPLITS > 1 else "bf16", "words": "i16", "scale": "bf16"}
    kinds |= {"zero_point": "u8", "bias": "bf16"}
    pointers = {f"{name}{i}": kind if i < count else None for name, kind in kinds.items() for i in range(AT_ONCE)}
    integers = [f"outputs{i}" for i in range(count)]
    name = f"{count} weights W{bits} bf16 {tokens} tokens"
    absent = {f"outputs{i}": None for i in range(count, AT_ONCE)}
    return tile_gate(
        name, product_many, bits, config, {**pointers, **absent, "x": "bf16"}, [*integers, "x_stride"], budget
    )


_BUDGETS = {2: (1.95, 2.5), 3: (2.9, 2.9), 4: (3.9, 3.9), 8: (7.8, 7.8)}  # as those of weights.py
GATES = (
    *(
        _gate(bits, tokens, budget)
        for bits, budgets in _BUDGETS.items()
        for tokens, budget in zip((1, 16), budgets, strict=True)
        if (bits, tokens) != (8, 1)  # the tile of 16
    ),
    _gate(4, 128, 4.8),
    _gate(4, 1, 3.9, count=2),
)
