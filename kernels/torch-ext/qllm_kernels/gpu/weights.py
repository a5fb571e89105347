"""Products of tokens in 16-bit floats with packed weights of 2 to 8 bits, on the weights as they are stored.

With few tokens there are few tiles. Then several programs share the rows of one, and the sums of their parts are added
in a fixed order: results depend on the config, and not on the moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .gate import TARGETS, Gate
from .planar import row_words
from .weights_groups import ALONE, ONCE, TOGETHER
from .weights_tiles import FOLDED, SCALED, SUBTRACTED, add_splits, product

BITS = range(2, 9)
TYPES = (torch.bfloat16, torch.float16)
SCALE_TYPES = (torch.bfloat16, torch.float16, torch.float32)
_PROCESSORS = 132  # of the GPU that `default_config` is made for
_BLOCK = 128
SUM_SIZE = 1024  # numbers that a program of `add_splits` adds up


class Config(NamedTuple):
    """How a product is cut.

    Attributes:
        BLOCK_N: outputs of a tile.
        BLOCK_M: tokens of a tile.
        SPLITS: programs that share the blocks of a tile's rows.
        num_warps, num_stages: of the compiler.
    """

    BLOCK_N: int
    BLOCK_M: int
    SPLITS: int
    num_warps: int
    num_stages: int


def default_config(M: int, N: int, K: int, bits: int, group_size: int) -> Config:
    """What the product of [M, K] and [N, K] is cut into, if nobody knows better."""
    block_m = 8 if M <= 8 and bits < 8 else min(128, max(16, triton.next_power_of_2(M)))
    block_n = 128 if block_m > 32 or (bits < 4 and block_m < 32) else 64
    num_warps = {8: 2, 16: 4, 32: 4}.get(block_m, 8)
    num_stages = 4 if block_m <= 32 and bits in (2, 4) else 3
    tiles = -(-M // block_m) * -(-N // block_n)
    programs = _PROCESSORS * {8: 6, 16: 4, 32: 4, 64: 2}.get(block_m, 1)
    pairs = max(1, K // _BLOCK // 2)  # of blocks; a program has two pairs at least
    splits = min(-(-programs // max(1, tiles)), max(1, pairs // 2)) if block_m < 128 else 1
    return Config(block_n, block_m, -(-pairs // -(-pairs // splits)), num_warps, num_stages)


def config_fault(config: Config) -> str | None:
    """What is wrong with a config, or None."""
    for name, value in config._asdict().items():
        if type(value) is not int or value < 1:
            return f"{name}={value!r}: takes positive integers"
    if config.BLOCK_N not in (16, 32, 64, 128, 256) or config.BLOCK_M not in (8, 16, 32, 64, 128, 256):
        tile = f"{config.BLOCK_N} outputs and {config.BLOCK_M} tokens"
        return f"tiles of {tile}: takes powers of two, 16 to 256 outputs and 8 to 256 tokens"
    if config.num_warps not in (1, 2, 4, 8, 16):
        return f"num_warps={config.num_warps}: takes 1, 2, 4, 8 or 16"
    return None


def refuses(dtype: torch.dtype, scale_dtype: torch.dtype, *, bits: int, group_size: int) -> str | None:
    """Why tokens of a dtype cannot be multiplied with a weight of those bits, groups and dtype of scales, or None."""
    if bits not in BITS:
        return f"{bits} bits: takes 2 to 8"
    if not (group_size in (-1, 32, 64) or (group_size > 0 and group_size % _BLOCK == 0)):
        return f"groups of {group_size}: takes 32, 64, multiples of 128, and -1 for a row"
    if dtype not in TYPES:
        return f"tokens of {_name(dtype)}: takes bfloat16 and float16, tensor cores have nothing as exact as float32"
    if scale_dtype not in SCALE_TYPES:
        return f"scales of {_name(scale_dtype)}: takes bfloat16, float16 and float32"
    return None


def linear(
    x: Tensor,
    words: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    *,
    bits: int,
    group_size: int,
    length: int,
    bias: Tensor | None = None,
    splits: int | None = None,
    config: Config | None = None,
) -> Tensor:
    """x [M, K] times the packed weight [N, K], plus bias [N]: [M, N] in the dtype of x.

    K is `length`. words int16 [N, W], scale [N, G] and zero_point uint8 [N, G], or None for symmetric codes, whose
    center is 2^(bits - 1). `splits` replaces that of the config.

    Raises:
        ValueError: `refuses` or `config_fault` says why, or shapes do not fit.
    """
    M, N = x.shape[0], words.shape[0]
    config = config or default_config(M, N, length, bits, group_size)
    if splits is not None:
        config = config._replace(SPLITS=splits)
    fault = misfit(x, words, scale, zero_point, bias, bits, group_size, length) or config_fault(config)
    if fault is not None:
        raise ValueError(fault)
    y = x.new_empty((M, N))
    if y.numel() == 0:
        return y
    if x.stride(1) != 1 and length > 1:
        x = x.contiguous()
    bias = None if bias is None else bias.contiguous()
    scale, zero_point = scale.contiguous(), None if zero_point is None else zero_point.contiguous()
    result = y if config.SPLITS == 1 else y.new_empty((config.SPLITS, M, N), dtype=torch.float32)
    tiles = -(-M // config.BLOCK_M) * -(-N // config.BLOCK_N)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        product[(tiles, config.SPLITS)](
            result,
            x,
            words.contiguous(),
            scale,
            zero_point,
            bias,
            M,
            N,
            x.stride(0),
            **constexprs(config, scale, zero_point, bits=bits, group_size=group_size, length=length),
            **options(config),
        )
        if config.SPLITS > 1:
            grid = (-(-M * N // SUM_SIZE),)
            add_splits[grid](y, result, bias, M * N, N, SPLITS=config.SPLITS, SIZE=SUM_SIZE)
    return y


def constexprs(
    config: Config, scale: Tensor, zero_point: Tensor | None, *, bits: int, group_size: int, length: int
) -> dict[str, int]:
    """Those of `weights_tiles.tile` for a weight of those scales [.., G] and zero points, where they lie."""
    way = _way(config, bits)
    read, at_once = _reading(way, config, scale, zero_point, group_size, length)
    return {
        "LENGTH": length,
        "BITS": bits,
        "GROUP_SIZE": group_size if group_size > 0 else -(-max(length, 1) // _BLOCK) * _BLOCK,
        "WAY": way,
        "READ": read,
        "AT_ONCE": at_once,
        "BLOCK_N": config.BLOCK_N,
        "BLOCK_M": config.BLOCK_M,
        "SPLITS": config.SPLITS,
        "WARPS": config.num_warps,
        "STAGES": config.num_stages,
    }


def options(config: Config) -> dict[str, int]:
    """Those of the compiler."""
    return {"num_warps": config.num_warps, "num_stages": config.num_stages}


def _way(config: Config, bits: int) -> int:
    """How the zero point leaves the codes: see weights_tiles.py."""
    if config.BLOCK_M == 8 and bits < 8:
        return int(FOLDED.value)
    return int(SUBTRACTED.value if config.BLOCK_M <= 64 else SCALED.value)


def _reading(
    way: int, config: Config, scale: Tensor, zero_point: Tensor | None, group_size: int, length: int
) -> tuple[int, int]:
    """How scales and zero points are read (see weights_groups.py), and how many blocks a step of the loop takes."""
    groups, blocks = scale.shape[1], length // _BLOCK
    few = min(2 if config.BLOCK_M <= 32 else 1, max(1, blocks))
    if groups == 1:
        return int(ONCE.value), few
    # Where each thread needs several rows, or several threads the same one, a load for each group is cheap.
    if config.BLOCK_N >= 32 * config.num_warps and config.BLOCK_M <= 32 and group_size <= _BLOCK:
        together = 2 if way == FOLDED.value else 4 * group_size // _BLOCK  # blocks with as many groups as fill a word
        groups_of_a_step = together * _BLOCK // group_size
        in_words = zero_point is None or (groups % min(4, groups_of_a_step) == 0 and zero_point.data_ptr() % 4 == 0)
        if in_words and blocks >= together and blocks % together == 0:
            return int(TOGETHER.value), together
    return int(ALONE.value), few


def misfit(
    x: Tensor,
    words: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    length: int,
) -> str | None:
    """Why `linear` does not take these tensors: `refuses`, or shapes that do not belong together. None if it does."""
    reason = refuses(x.dtype, scale.dtype, bits=bits, group_size=group_size)
    if reason is not None:
        return reason
    if x.dim() != 2 or x.shape[1] != length:
        return f"x {list(x.shape)}: takes [M, {length}]"
    if words.dtype != torch.int16 or words.dim() != 2 or words.shape[1] != row_words(length, bits):
        wanted = row_words(length, bits)
        return f"words {list(words.shape)} of {_name(words.dtype)}: {length} codes take int16 [N, {wanted}]"
    groups = [words.shape[0], -(-length // group_size) if group_size > 0 else 1]
    if list(scale.shape) != groups:
        return f"scales {list(scale.shape)}: takes {groups}"
    if zero_point is not None and (zero_point.dtype != torch.uint8 or list(zero_point.shape) != groups):
        return f"zero points {list(zero_point.shape)} of {_name(zero_point.dtype)}: takes uint8 {groups}"
    if bias is not None and list(bias.shape) != groups[:1]:
        return f"bias {list(bias.shape)}: takes {groups[:1]}"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tile_gate(
    name: str,
    function: Any,
    bits: int,
    config: Config,
    pointers: Mapping[str, str | None],
    integers: Sequence[str],
    budget: float,
    **more: int,
) -> Gate:
    """For a kernel around `weights_tiles.tile`, with groups of 128, or of 64 for up to 3 bits.

    pointers: the type of what each points to, or None where it is not there. integers: those that are multiples of 16.
    more: further constexprs.
    """
    length, group_size = 16384, 64 if bits < 4 else 128
    groups = torch.empty((1, length // group_size), dtype=torch.uint8)
    constants = constexprs(config, groups, groups, bits=bits, group_size=group_size, length=length)
    folded = constants["WAY"] == FOLDED.value
    there = {pointer: f"*{kind}" for pointer, kind in pointers.items() if kind is not None}
    return Gate(
        name,
        function,
        {**there, "tokens": "i32", **dict.fromkeys(integers, "i32")},
        {**constants, **more, **dict.fromkeys(pointers.keys() - there.keys())},
        elements=config.BLOCK_N * _BLOCK * constants["AT_ONCE"],
        options=options(config),
        expects="HMMA" if folded else "HGMMA",
        budget=budget,
        divisible=tuple(integers),
        targets=TARGETS if folded else ("cuda:90",),
    )


def _gate(bits: int, dtype: str, tokens: int, budget: float) -> Gate:
    config = default_config(tokens, 4096, 4096, bits, 64 if bits < 4 else 128)
    pointers = {"y": "fp32" if config.SPLITS > 1 else dtype, "x": dtype, "words": "i16", "scale": dtype}
    pointers |= {"zero_point": "u8", "bias": dtype}
    name = f"W{bits} {dtype} {tokens} tokens"
    return tile_gate(name, product, bits, config, pointers, ("outputs", "x_stride"), budget)


_BUDGETS = {  # instructions per code with 1, 16 and 128 tokens; with one, what memory leaves time for
    2: (1.95, 2.5, 4.0),
    3: (2.9, 2.9, 4.3),
    4: (3.9, 3.9, 4.8),
    8: (7.8, 7.8, 7.8),
}
GATES = tuple(
    _gate(bits, dtype, tokens, budget)
    for dtype in ("bf16", "fp16")
    for bits, budgets in _BUDGETS.items()
    for tokens, budget in zip((1, 16, 128), budgets, strict=True)
    if (bits, tokens) != (8, 1)  # the tile of 16
)
