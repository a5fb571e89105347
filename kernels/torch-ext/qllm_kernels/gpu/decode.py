"""Packed tensors and rows of a cache to floats: (code - zero point) scale, rounded once to the type that is asked for.

A program takes one span of columns (32, 64 or 128 codes, within one block and mostly within one group) of many rows.
It writes four times what it reads, or more, and is as fast as memory with 20 instructions per code.

Many tokens are multiplied with a weight this way: decode it once, and let cuBLAS multiply.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .gate import Gate
from .planar import BLOCK, codes_at, rest_of, row_words
from .rounding import load_float, rounded

TYPES = (torch.float32, torch.bfloat16, torch.float16)
BITS = range(2, 9)
_ELEMENTS = 4096  # codes of one program


def refuses(
    words: Tensor,
    *,
    bits: int,
    group_size: int,
    length: int,
    dtype: torch.dtype,
    scale_dtype: torch.dtype | None = None,
) -> str | None:
    """Why words [..., W] of `length` codes cannot be decoded to `dtype`, or None. `scale_dtype` where it is another."""
    if bits not in BITS:
        return f"{bits} bits: takes 2 to 8"
    if group_size < 1 and group_size not in (-1, 0):
        return f"group_size={group_size}: takes positive ones, -1 for a row and 0 for a matrix"
    for kind in (dtype, scale_dtype or dtype):
        if kind not in TYPES:
            return f"{str(kind).removeprefix('torch.')}: takes float32, bfloat16 and float16"
    if words.dtype != torch.int16:
        return f"words of {str(words.dtype).removeprefix('torch.')}: takes int16"
    if words.stride(-1) != 1 and words.shape[-1] > 1:
        return "words that are not contiguous along a row"
    return None


def decode(
    words: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    *,
    bits: int,
    group_size: int,
    length: int,
    dtype: torch.dtype,
) -> Tensor:
    """The numbers [..., length] in `dtype` that packed codes mean.

    words int16 [..., W], scale [..., G] (or [..., 1, 1] with `group_size=0`) and zero_point uint8 of its shape, or None
    for symmetric codes, whose center is 2^(bits - 1). Bit for bit what torch computes in float32.

    Raises:
        ValueError: `refuses` says why, or shapes do not fit.
    """
    _check(refuses(words, bits=bits, group_size=group_size, length=length, dtype=dtype, scale_dtype=scale.dtype))
    outer, groups = words.shape[:-1], -(-length // group_size) if group_size > 0 else 1
    if words.shape[-1] != row_words(length, bits):
        raise ValueError(f"{length} codes of {bits} bits take {row_words(length, bits)} words, got {words.shape[-1]}")
    if group_size == 0:  # each row reads the one of its matrix
        scale = scale.expand(*outer, 1)
        zero_point = None if zero_point is None else zero_point.expand(*outer, 1)
    for name, part in (("scales", scale), ("zero points", zero_point)):
        if part is not None and part.shape != (*outer, groups):
            raise ValueError(f"{name} {list(part.shape)}: takes {[*outer, groups]}")
    y = words.new_empty((*outer, length), dtype=dtype)
    if y.numel() == 0:
        return y
    rows = y.numel() // length
    span, height, whole = _tile(group_size, length)
    with torch.cuda.device_of(words):
        _decode[_grid(rows, height, length, span)](
            y,
            words.contiguous(),
            scale.contiguous(),
            None if zero_point is None else zero_point.contiguous(),
            rows,
            LENGTH=length,
            BITS=bits,
            GROUP_SIZE=whole,
            GROUPS=groups,
            ROWS=height,
            SPAN=span,
        )
    return y


def decode_rows(
    rows: Tensor, *, bits: int, group_size: int, symmetric: bool, length: int, dtype: torch.dtype
) -> Tensor:
    """The vectors [B, H, T, length] in `dtype` that rows int16 [B, H, T, R] of a cache stand for.

    A row is | codes | scales in `dtype` | zero points, a byte each |. Its words are contiguous; rows may lie anywhere.

    Raises:
        ValueError: `refuses` says why, or the shape does not fit.
    """
    _check(refuses(rows, bits=bits, group_size=group_size, length=length, dtype=dtype))
    groups = -(-length // group_size) if group_size > 0 else 1
    needed = row_words(length, bits) + groups * dtype.itemsize // 2 + (0 if symmetric else -(-groups // 2))
    if group_size == 0 or rows.dim() != 4 or rows.shape[-1] != needed:
        raise ValueError(f"rows {list(rows.shape)}: takes [B, H, T, {needed}] with groups along a row")
    batch, heads, tokens, _ = rows.shape
    y = rows.new_empty((batch, heads, tokens, length), dtype=dtype)
    if y.numel() == 0:
        return y
    span, height, whole = _tile(group_size, length)
    (programs,) = _grid(tokens, height, length, span)
    with torch.cuda.device_of(rows):
        _decode_rows[(programs * batch * heads,)](
            y,
            rows,
            heads,
            tokens,
            *rows.stride()[:3],
            LENGTH=length,
            BITS=bits,
            GROUP_SIZE=whole,
            GROUPS=groups,
            SYMMETRIC=symmetric,
            ROWS=height,
            SPAN=span,
        )
    return y


def linear_by_decoding(
    x: Tensor,
    words: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    *,
    bits: int,
    group_size: int,
    length: int,
    bias: Tensor | None = None,
) -> Tensor:
    """x [..., I] times the packed weight [O, I], plus bias [O]: the weight is decoded in the type of x, for one call.

    Raises:
        ValueError: as `decode`.
    """
    weight = decode(words, scale, zero_point, bits=bits, group_size=group_size, length=length, dtype=x.dtype)
    return F.linear(x, weight, bias)


def _check(reason: str | None) -> None:
    if reason is not None:
        raise ValueError(reason)


def _tile(group_size: int, length: int) -> tuple[int, int, int]:
    """Columns and rows of a tile, and the size of a group, which is a multiple of the columns where that can be."""
    span = next((span for span in (128, 64, 32) if group_size % span == 0), 128)
    whole = group_size if group_size > 0 else -(-length // span) * span
    return span, _ELEMENTS // span, whole


def _grid(rows: int, height: int, length: int, span: int) -> Sequence[int]:
    return (-(-rows // height) * -(-length // span),)


@triton.jit
def _codes_of_span(words, span, here, LENGTH: tl.constexpr, BITS: tl.constexpr, SPAN: tl.constexpr):
    """Codes int32 [R, SPAN] of the span with that number; words are the addresses [R, 1] of rows."""
    SPANS: tl.constexpr = 128 // SPAN  # of a block
    block, place = span // SPANS, span % SPANS * SPAN + tl.arange(0, SPAN)[None, :]
    start = words + block * (8 * BITS)
    if rest_of(LENGTH) == 0:
        codes = codes_at(start, place, here, BLOCK, BITS)
    elif block == LENGTH // BLOCK:
        codes = codes_at(start, place, here, rest_of(LENGTH), BITS)
    else:
        codes = codes_at(start, place, here, BLOCK, BITS)
    return codes


@triton.jit
def _decode(
    y,
    words,
    scale,
    zero_point,
    rows,
    LENGTH: tl.constexpr,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
):
    SPANS: tl.constexpr = (LENGTH + SPAN - 1) // SPAN
    span, tile = tl.program_id(0) % SPANS, tl.program_id(0) // SPANS
    row = (tile.to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = span * SPAN + tl.arange(0, SPAN)[None, :]
    here = (row < rows) & (column < LENGTH)
    codes = _codes_of_span(words + row * row_words(LENGTH, BITS), span, here, LENGTH, BITS, SPAN)
    if GROUP_SIZE % SPAN == 0:
        group, there = row * GROUPS + span * SPAN // GROUP_SIZE, row < rows
    else:
        group, there = row * GROUPS + column // GROUP_SIZE, here
    factor = tl.load(scale + group, there, other=0).to(tl.float32)
    if zero_point is None:
        codes -= 1 << (BITS - 1)
    else:
        codes -= tl.load(zero_point + group, there, other=0).to(tl.int32)
    value = codes.to(tl.float32) * factor
    tl.store(y + row * LENGTH + column, rounded(value, y.dtype.element_ty), here)


@triton.jit
def _decode_rows(
    y,
    rows,
    heads,
    tokens,
    batch_stride,
    head_stride,
    token_stride,
    LENGTH: tl.constexpr,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
):
    SPANS: tl.constexpr = (LENGTH + SPAN - 1) // SPAN
    tiles = (tokens + ROWS - 1) // ROWS
    span, rest = tl.program_id(0) % SPANS, tl.program_id(0) // SPANS
    sequence, tile = (rest // tiles).to(tl.int64), rest % tiles
    token = (tile * ROWS + tl.arange(0, ROWS))[:, None]
    column = span * SPAN + tl.arange(0, SPAN)[None, :]
    here = (token < tokens) & (column < LENGTH)
    row = rows + sequence // heads * batch_stride + sequence % heads * head_stride + token.to(tl.int64) * token_stride
    codes = _codes_of_span(row, span, here, LENGTH, BITS, SPAN)
    if GROUP_SIZE % SPAN == 0:
        group, there = span * SPAN // GROUP_SIZE, token < tokens
    else:
        group, there = column // GROUP_SIZE, here
    WORDS: tl.constexpr = y.dtype.element_ty.primitive_bitwidth // 16  # of a scale
    scales = row + row_words(LENGTH, BITS)
    factor = load_float(scales + group * WORDS, there, y.dtype.element_ty)
    if SYMMETRIC:
        codes -= 1 << (BITS - 1)
    else:
        pair = tl.load(scales + GROUPS * WORDS + group // 2, there, other=0).to(tl.int32)
        codes -= (pair >> (group % 2 * 8)) & 255
    value = codes.to(tl.float32) * factor
    place = y + (sequence * tokens + token) * LENGTH + column
    tl.store(place, rounded(value, y.dtype.element_ty), here)


def _gate(
    name: str, function: object, arguments: dict[str, str], constants: dict[str, object], budget: float, wide: bool
) -> Gate:
    """Instructions are counted by how many fewer half the rows take."""
    rows, span = constants["ROWS"], constants["SPAN"]
    assert isinstance(rows, int) and isinstance(span, int)
    half = ({"ROWS": rows // 2}, rows // 2 * span)
    return Gate(name, function, arguments, constants, rows * span, small=half, budget=budget, wide=wide)


def _weight_gate(bits: int, group_size: int, length: int = 4096, zero_points: bool = True) -> Gate:
    span, height, whole = _tile(group_size, length)
    arguments = {"y": "*bf16", "words": "*i16", "scale": "*bf16", "rows": "i32"}
    constants: dict[str, object] = {"LENGTH": length, "BITS": bits, "GROUP_SIZE": whole, "ROWS": height, "SPAN": span}
    constants["GROUPS"] = -(-length // whole)
    if zero_points:
        arguments["zero_point"] = "*u8"
    else:
        constants["zero_point"] = None
    name = f"decode W{bits} g{group_size} of {length}" + ("" if zero_points else " symmetric")
    return _gate(name, _decode, arguments, constants, _BUDGET * (2 + bits / 8), wide=rest_of(length) == 0)


def _rows_gate(bits: int, group_size: int, length: int = 128) -> Gate:
    """Rows of a cache may begin at any word, and are read word by word."""
    span, height, whole = _tile(group_size, length)
    sizes = ("heads", "tokens", "batch_stride", "head_stride", "token_stride")
    arguments = {"y": "*bf16", "rows": "*i16", **dict.fromkeys(sizes, "i32")}
    constants: dict[str, object] = {"LENGTH": length, "BITS": bits, "GROUP_SIZE": whole, "ROWS": height, "SPAN": span}
    constants |= {"GROUPS": -(-length // whole), "SYMMETRIC": False}
    return _gate(f"decode KV{bits} g{group_size} of {length}", _decode_rows, arguments, constants, 20, wide=False)


# Instructions that a GPU has time for while it reads or writes a byte, at 4.3 TB/s.
_BUDGET = 7.8
GATES = (
    *(_weight_gate(bits, 128) for bits in BITS),
    _weight_gate(8, -1, zero_points=False),
    _weight_gate(4, 64),
    _weight_gate(4, 32),
    _weight_gate(4, 128, length=4000),
    *(_rows_gate(bits, 64) for bits in (2, 3, 4, 8)),
    _rows_gate(4, 80, length=80),
)
