"""Products of integers: packed weights of 2 to 8 bits with activations that are quantized for each token.

What is computed, and how exact it is, says integer_tiles.py. Tokens are quantized in a kernel of their own (tokens.py),
once for all weights that multiply them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .gate import Gate
from .integer_tiles import add_splits, product
from .planar import in_blocks, row_words
from .tokens import TYPES, Tokens, quantize, quantize_tokens

BITS = range(2, 9)
_BLOCK = 128
_PROCESSORS = 132  # of an H100 or H200: `default_config` gives each two programs


class Config(NamedTuple):
    """How a product is cut.

    Attributes:
        BLOCK_N: outputs of a tile.
        BLOCK_M: tokens of a tile.
        SPLITS: programs that share the blocks of 128 codes in the rows of a tile.
        num_warps, num_stages: of the compiler.
    """

    BLOCK_N: int
    BLOCK_M: int
    SPLITS: int
    num_warps: int
    num_stages: int


def default_config(tokens: int, outputs: int, length: int, bits: int = 4, group_size: int = 128) -> Config:
    """How to cut a product of [tokens, length] with [outputs, length], if nobody has measured it."""
    if tokens <= 8 and bits in (4, 8):  # what else is unpacked for tiles of 8 tokens has to change lanes
        block_m, block_n = 8, 64
    else:
        # with short groups, or 8 bits in groups, there is more to keep in registers
        most = 64 if 0 < group_size < _BLOCK or (bits == 8 and group_size > 0) else 128
        block_m, block_n = min(most, max(16, triton.next_power_of_2(tokens))), 128
    tiles = max(1, -(-tokens // block_m) * -(-outputs // block_n))
    splits = max(1, min(length // _BLOCK // 4, 2 * _PROCESSORS // tiles)) if block_m <= 64 else 1
    config = Config(block_n, block_m, splits, num_warps=4 if block_m <= 32 else 8, num_stages=3)
    # words of several fields take more room, of which two stages of two blocks are enough
    several = bits in (3, 5, 6, 7) and _at_once(config, length) > 1
    return config._replace(num_stages=2) if several else config


def config_fault(config: Config, length: int) -> str | None:
    """What is wrong with a config for rows of `length` codes, or None."""
    for name, value in config._asdict().items():
        if type(value) is not int or value < 1:
            return f"{name}={value!r}: takes positive integers"
    if config.BLOCK_M not in (8, 16, 32, 64, 128, 256) or config.BLOCK_N not in (16, 32, 64, 128, 256):
        tile = f"{config.BLOCK_N} outputs and {config.BLOCK_M} tokens"
        return f"tiles of {tile}: takes powers of two, 16 to 256 outputs and 8 to 256 tokens"
    if config.num_warps not in (1, 2, 4, 8, 16):
        return f"num_warps={config.num_warps}: takes 1, 2, 4, 8 and 16"
    if config.SPLITS > max(1, length // _BLOCK):
        return f"SPLITS={config.SPLITS}: there are {length // _BLOCK} whole blocks in a row"
    return None


def refuses(
    words: Tensor,
    *,
    bits: int,
    group_size: int,
    dtype: torch.dtype,
    scale_dtype: torch.dtype,
    activation_bits: int,
) -> str | None:
    """Why x in `dtype` cannot be multiplied with a packed weight of words [O, W], or None."""
    if bits not in BITS:
        return f"weights of {bits} bits: takes 2 to 8"
    if activation_bits not in BITS:
        return f"activations of {activation_bits} bits: takes 2 to 8"
    if group_size not in (-1, 32, 64) and (group_size < 1 or group_size % _BLOCK):
        return f"groups of {group_size}: takes 32, 64, multiples of 128, and -1 for a row"
    for name, kind in (("activations", dtype), ("scales", scale_dtype)):
        if kind not in TYPES:
            return f"{name} in {str(kind).removeprefix('torch.')}: takes float32, bfloat16 and float16"
    if words.dim() != 2 or words.dtype != torch.int16:
        return f"words {list(words.shape)} of {str(words.dtype).removeprefix('torch.')}: takes int16 [O, W]"
    return None


def sums_over(zero_point: Tensor | None, *, bits: int, group_size: int, length: int, activation_bits: int) -> int:
    """The `sums_over` that `quantize_tokens` is to be asked for, when tokens are for a weight; 0 if it needs none.

    Weights of 8 bits with zero points cannot be multiplied without these sums, those of fewer bits are slower.
    """
    return 0 if bits == 8 and zero_point is None else _span(bits, group_size, length, activation_bits)


def linear(
    x: Tensor,
    words: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    *,
    bits: int,
    group_size: int,
    length: int,
    activation_bits: int,
    activation_symmetric: bool,
    bias: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """x [..., I], quantized per token, times the packed weight [O, I], plus bias [O]: [..., O] in the type of x.

    words int16 [O, W], scale [O, G] and zero_point uint8 [O, G], or None for symmetric codes, whose center is
    2^(bits - 1).

    Raises:
        ValueError: `refuses` or `config_fault` says why, or shapes do not fit.
    """
    spans = sums_over(zero_point, bits=bits, group_size=group_size, length=length, activation_bits=activation_bits)
    tokens = quantize_tokens(
        x.reshape(-1, x.shape[-1]), bits=activation_bits, symmetric=activation_symmetric, sums_over=spans
    )
    y = multiply(tokens, words, scale, zero_point, bits=bits, group_size=group_size, bias=bias, config=config)
    return y.reshape(*x.shape[:-1], words.shape[0])


def multiply(
    tokens: Tokens,
    words: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    *,
    bits: int,
    group_size: int,
    bias: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """As `linear`, for tokens [M, I] that are quantized, with `sums_over` for this weight: y [M, O] in their type.

    Raises:
        ValueError: as `linear`.
    """
    count, outputs, length = tokens.codes.shape[0], words.shape[0], tokens.length
    config = config or default_config(count, outputs, length, bits, group_size)
    fault = _fault(tokens, words, scale, zero_point, bits, group_size) or config_fault(config, length)
    if fault is not None:
        raise ValueError(fault)
    y = tokens.scale.new_empty((count, outputs))
    if y.numel() == 0:
        return y
    bias = None if bias is None else bias.contiguous()
    span = _span(bits, group_size, length, tokens.bits)
    with_sums = _zero_points_last(bits, zero_point is not None, span, config) and _has_sums(tokens, span)
    result = y if config.SPLITS == 1 else y.new_empty((config.SPLITS, count, outputs), dtype=torch.float32)
    tiles = -(-count // config.BLOCK_M) * -(-outputs // config.BLOCK_N)
    with torch.cuda.device_of(words):
        product[(tiles, config.SPLITS)](
            result,
            tokens.codes,
            tokens.scale,
            tokens.zero_point,
            tokens.sums if with_sums else None,
            words.contiguous(),
            scale.contiguous(),
            None if zero_point is None else zero_point.contiguous(),
            bias,
            count,
            outputs,
            LENGTH=length,
            BITS=bits,
            GROUP_SIZE=group_size if group_size > 0 else in_blocks(length),
            SPAN=span,
            AT_ONCE=_at_once(config, length),
            SPLITS=config.SPLITS,
            BLOCK_M=config.BLOCK_M,
            BLOCK_N=config.BLOCK_N,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        if config.SPLITS > 1:
            grid = (count, -(-outputs // 1024))
            add_splits[grid](y, result, tokens.scale, bias, count, outputs, SPLITS=config.SPLITS, COLUMNS=1024)
    return y


def _fault(
    tokens: Tokens, words: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, group_size: int
) -> str | None:
    """Why these cannot be multiplied, or None."""
    length = tokens.length
    reason = refuses(
        words,
        bits=bits,
        group_size=group_size,
        dtype=tokens.scale.dtype,
        scale_dtype=scale.dtype,
        activation_bits=tokens.bits,
    )
    if reason is not None:
        return reason
    if length == 0:
        return "tokens of no elements"
    if words.shape[1] != row_words(length, bits):
        return f"words {list(words.shape)}: {length} codes of {bits} bits take {row_words(length, bits)} words"
    groups = [words.shape[0], -(-length // group_size) if group_size > 0 else 1]
    for name, part in (("scales", scale), ("zero points", zero_point)):
        if part is not None and list(part.shape) != groups:
            return f"{name} {list(part.shape)}: takes {groups}"
    span = _span(bits, group_size, length, tokens.bits)
    if bits == 8 and zero_point is not None and not _has_sums(tokens, span):
        return f"tokens without sums over {span} elements"
    return None


def _has_sums(tokens: Tokens, span: int) -> bool:
    return tokens.sums is not None and tokens.sums.shape[0] == -(-tokens.length // span)


def _zero_points_last(bits: int, zero_points: bool, span: int, config: Config) -> bool:
    """Whether zero points of weights are taken off after the products: where that is less work (integer_tiles.py)."""
    return zero_points if bits == 8 else span > _BLOCK or config.BLOCK_M <= 32


def _at_once(config: Config, length: int) -> int:
    """Blocks in a pass of the loop: two where so little is to do for one that the loop itself counts."""
    return 2 if config.BLOCK_M <= 16 and length // _BLOCK >= 2 * config.SPLITS else 1


def _span(bits: int, group_size: int, length: int, activation_bits: int) -> int:
    """Codes that are summed as integers before they get a scale: a row, if 32 bits hold all that can come out."""
    if group_size < 0:
        fits = length * (2**bits - 1) * (2**activation_bits - 1) < 2**31
        return in_blocks(length) if fits else _BLOCK
    return min(group_size, _BLOCK)


def _product_gate(
    name: str, bits: int, group_size: int, tokens: int, zero_points: bool = True, length: int = 4096
) -> Gate:
    """The product of tokens in 8 bits with 4096 outputs, cut by default; zero points are on both sides or on none."""
    config = default_config(tokens, 4096, length, bits, group_size)
    kind, span = "fp32" if config.SPLITS > 1 else "bf16", _span(bits, group_size, length, 8)
    arguments = {"y": f"*{kind}", "codes": "*i8", "x_scale": "*bf16", "words": "*i16", "scale": "*bf16"}
    arguments |= {"tokens": "i32", "outputs": "i32"}
    if zero_points:
        arguments |= {"x_zero": "*i32", "zero_point": "*u8"}
    if _zero_points_last(bits, zero_points, span, config):
        arguments["x_sums"] = "*i32"
    constants = {
        "LENGTH": length,
        "BITS": bits,
        "GROUP_SIZE": group_size if group_size > 0 else in_blocks(length),
        "SPAN": span,
        "AT_ONCE": _at_once(config, length),
        "SPLITS": config.SPLITS,
        "BLOCK_M": config.BLOCK_M,
        "BLOCK_N": config.BLOCK_N,
    }
    absent = {"x_zero", "x_sums", "zero_point", "bias"} - set(arguments)
    return Gate(
        f"W{bits}A8 g{group_size}{'' if zero_points else ' symmetric'}, {name}",
        product,
        arguments,
        constants | dict.fromkeys(absent),
        elements=config.BLOCK_N * _BLOCK * _at_once(config, length),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
        expects="IMMA" if config.BLOCK_M == 8 else "IGMMA",
        budget={"cuda:90": PRODUCTS if tokens >= 128 else MEMORY * bits},
        divisible=("outputs",),
    )


def _tokens_gate(bits: int, symmetric: bool, sums: int = 0) -> Gate:
    """Tokens of 4096 numbers in bfloat16, all of them in registers. Half as many are counted off. Budget: 3 bytes."""
    arguments = {"numbers": "*i8", "scale_bits": "*i16", "x": "*bf16", "x_stride": "i32"}
    if bits == 8 and not symmetric:
        arguments["zero_point"] = "*i32"
    if sums:
        arguments["sums"] = "*i32"
    constants = {"LENGTH": 4096, "BITS": bits, "SYMMETRIC": symmetric, "SUMS_OVER": sums, "AT_ONCE": 4096}
    return Gate(
        f"tokens A{bits}{' symmetric' if symmetric else ''}{f' with sums over {sums}' if sums else ''}",
        quantize,
        arguments,
        constants | dict.fromkeys({"zero_point", "sums"} - set(arguments)),
        elements=4096,
        options={"num_warps": 4},
        budget=23,
        small=({"LENGTH": 2048, "AT_ONCE": 2048}, 2048),
        divisible=("x_stride",),
    )


# Instructions that a Hopper GPU has time for: while it reads a bit of a code, and for a code beside its products with
# 128 tokens on tensor cores. Older ones have no budget.
MEMORY, PRODUCTS = 3.9 / 4, 4.0
GATES = (
    _product_gate("a token", 2, 128, 1),
    _product_gate("a token", 3, 128, 1),
    _product_gate("a token", 4, 128, 1),
    _product_gate("a token", 4, -1, 1),
    _product_gate("a token", 4, 64, 1),
    _product_gate("a token", 4, 32, 1),
    _product_gate("a token", 5, 128, 1),
    _product_gate("a token", 6, 128, 1),
    _product_gate("a token", 7, 128, 1),
    _product_gate("a token", 8, 128, 1),
    _product_gate("a token", 8, -1, 1, zero_points=False),
    _product_gate("16 tokens", 4, 128, 16),
    _product_gate("16 tokens, a short block", 4, 128, 16, length=4000),
    _product_gate("16 tokens, a short block", 8, 128, 16, length=4000),
    _product_gate("64 tokens", 4, 128, 64),
    _product_gate("many tokens", 4, 128, 2048),
    _product_gate("many tokens", 4, 64, 2048),
    _product_gate("many tokens", 4, -1, 2048),
    _product_gate("many tokens", 8, 128, 2048),
    _product_gate("many tokens", 8, -1, 2048),
    _product_gate("many tokens", 8, -1, 2048, zero_points=False),
    _tokens_gate(8, False),
    _tokens_gate(8, False, sums=128),
    _tokens_gate(8, True),
    _tokens_gate(4, False),
)
