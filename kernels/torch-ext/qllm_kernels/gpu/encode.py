"""Numbers to packed tensors and to rows of a cache: ranges, scales, codes and words in one launch.

What comes out is bit for bit what `PackedTensor.encode` and `RowFormat.encode` of qllm_hf make with torch on a CPU. (On
a GPU torch itself divides by a constant as it multiplies with its inverse, so that a float32 scale may differ there in
the last place.) As there, a number that is not finite makes the scale of its group infinite or NaN. The codes of such a
group are all the zero point, so that whatever is computed from it is NaN.

Launches do not wait for the GPU and read positions there: they can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import missing
from .gate import Gate
from .planar import row_words
from .spans import encode_part, groups_of, reads_once, rows_at_once, span_length

TYPES = (torch.float32, torch.bfloat16, torch.float16)
BITS = range(2, 9)
_MOST_GROUPS, _LONGEST = 16, 1024  # of a span that is not a multiple of 128 numbers, or not whole planes
_WARPS = 1  # rows_at_once counts on it, and no thread has to wait for another warp


def refuses(
    *, bits: int, group_size: int, length: int, dtype: torch.dtype, scale_dtype: torch.dtype | None = None
) -> str | None:
    """Why vectors of `length` numbers of `dtype` cannot be encoded, or None.

    `group_size` is -1 for one group per vector. `scale_dtype` is given where scales are stored in another dtype.
    """
    reason = missing()
    if reason is not None:
        return reason
    if bits not in BITS:
        return f"{bits} bits: takes 2 to 8"
    if group_size < 1 and group_size != -1:
        return f"group_size={group_size}: takes positive ones, and -1 for a whole vector"
    for each in (dtype, scale_dtype or dtype):
        if each not in TYPES:
            return f"{str(each).removeprefix('torch.')}: takes float32, bfloat16 and float16"
    if length < 1:
        return "vectors without numbers"
    group = _group(group_size, length)
    span = span_length(length, group)
    many = span > _LONGEST or groups_of(span, group) > _MOST_GROUPS
    if group < span and many and not reads_once(span, group, bits):
        return f"groups of {group_size} in vectors of {length}: takes 32, 64, multiples of 128 and whole vectors"
    return None


def encode(
    x: Tensor, *, bits: int, group_size: int, symmetric: bool, scale_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x [..., K] in groups along K: words int16 [..., W], scale [..., G] and zero_point uint8 [..., G] or None.

    Scales have the dtype of x or `scale_dtype`. A view whose last dimension is contiguous is read where it is, if it
    has up to four dimensions.

    Raises:
        ValueError: `refuses` says why.
    """
    kind, length = scale_dtype or x.dtype, x.shape[-1]
    _check(refuses(bits=bits, group_size=group_size, length=length, dtype=x.dtype, scale_dtype=kind))
    group, outer = _group(group_size, length), x.shape[:-1]
    words = x.new_empty((*outer, row_words(length, bits)), dtype=torch.int16)
    scale = x.new_empty((*outer, groups_of(length, group)), dtype=kind)
    zero_point = None if symmetric else x.new_empty(scale.shape, dtype=torch.uint8)
    if x.numel() == 0:
        return words, scale, zero_point
    vectors = _as_four_dimensions(x)
    batch, heads, tokens = vectors.shape[:3]
    height, spans = rows_at_once(length, group, bits), groups_of(length, span_length(length, group))
    with torch.cuda.device_of(x):
        _encode[(batch * heads * -(-tokens // height), spans)](
            vectors,
            words,
            scale,
            zero_point,
            heads,
            tokens,
            *vectors.stride()[:3],
            LENGTH=length,
            GROUP=group,
            BITS=bits,
            SYMMETRIC=symmetric,
            ROWS=height,
            num_warps=_WARPS,
        )
    return words, scale, zero_point


def encode_rows_into(x: Tensor, rows: Tensor, *, bits: int, group_size: int, symmetric: bool) -> None:
    """Write vectors x [B, H, T, D] as rows of a cache to `rows` int16 [B, H, T, R], perhaps a part of a larger tensor.

    A row is | codes | scales in the dtype of x | zero points, a byte each, and one more if their number is odd |. The
    last dimension of both tensors is contiguous, all else may be strided.

    Raises:
        ValueError: `refuses` says why, or shapes or strides do not fit.
    """
    group = _check_rows(x, rows, bits=bits, group_size=group_size, symmetric=symmetric)
    if rows.shape[2] != x.shape[2]:
        raise ValueError(f"rows {list(rows.shape)} for vectors {list(x.shape)}")
    _launch(x, None, rows, None, None, bits=bits, groups=(group, 0), symmetric=symmetric)


def append(
    keys: Tensor,
    values: Tensor,
    key_rows: Tensor,
    value_rows: Tensor,
    positions: Tensor,
    *,
    bits: int,
    key_group_size: int,
    value_group_size: int,
    symmetric: bool,
) -> None:
    """Write the keys and values of T new tokens, as rows, to where they belong in a static cache, in one launch.

    keys and values [B, H, T, D], D of one and the other; key_rows and value_rows int16 [B, H, capacity, R] as
    `encode_rows_into` makes them. positions, int64 or int32 and on the same device:

        [T]       the position of each token, as transformers' StaticLayer has it for index_copy_
        []        that of the first token; the others follow. StaticLayer's `cumulative_length` itself is one
        [B, T]    the position of each token of each sequence

    Negative positions count from the end of the cache, as indices do (StaticSlidingWindowLayer writes to -1 once it is
    full). A token whose position is not in the cache is not written: an error would have to wait for the GPU. No two
    tokens of a sequence may have the same position.

    Raises:
        ValueError: `refuses` says why, or shapes, strides or dtypes do not fit.
    """
    groups = (
        _check_rows(keys, key_rows, bits=bits, group_size=key_group_size, symmetric=symmetric),
        _check_rows(values, value_rows, bits=bits, group_size=value_group_size, symmetric=symmetric),
    )
    if keys.shape[:3] != values.shape[:3] or keys.dtype != values.dtype or key_rows.shape[2] != value_rows.shape[2]:
        raise ValueError(f"keys {list(keys.shape)} and values {list(values.shape)} or their rows do not fit each other")
    batch, _, tokens, _ = keys.shape
    if positions.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"positions of {positions.dtype}: takes int64 and int32")
    if tuple(positions.shape) not in ((), (tokens,), (batch, tokens)):
        raise ValueError(f"positions {list(positions.shape)} of {batch} x {tokens} tokens: takes [], [T] and [B, T]")
    _launch(keys, values, key_rows, value_rows, positions, bits=bits, groups=groups, symmetric=symmetric)


def _check(reason: str | None) -> None:
    if reason is not None:
        raise ValueError(reason)


def _group(group_size: int, length: int) -> int:
    return min(group_size, length) if group_size > 0 else length


def _as_four_dimensions(x: Tensor) -> Tensor:
    if x.dim() > 4 or (x.stride(-1) != 1 and x.shape[-1] > 1):
        x = x.contiguous()
    return x.view(1, 1, -1, x.shape[-1]) if x.is_contiguous() else x[(None,) * (4 - x.dim())]


def _check_rows(x: Tensor, rows: Tensor, *, bits: int, group_size: int, symmetric: bool) -> int:
    """The size of a group, if vectors and rows fit.

    Raises:
        ValueError: they do not, or `refuses` says why.
    """
    length = x.shape[-1]
    _check(refuses(bits=bits, group_size=group_size, length=length, dtype=x.dtype))
    if x.dim() != 4 or rows.dim() != 4 or rows.shape[:2] != x.shape[:2]:
        raise ValueError(f"vectors {list(x.shape)} and rows {list(rows.shape)}: takes [B, H, T, D] and [B, H, .., R]")
    group = _group(group_size, length)
    count = groups_of(length, group)
    needed = row_words(length, bits) + count * x.dtype.itemsize // 2 + (0 if symmetric else -(-count // 2))
    if rows.dtype != torch.int16 or rows.shape[3] != needed:
        raise ValueError(f"rows of {rows.shape[3]} {rows.dtype}: vectors of {length} take {needed} torch.int16")
    if x.stride(3) != 1 or rows.stride(3) != 1:
        raise ValueError("vectors and rows have to be contiguous along their last dimension")
    return group


def _launch(
    keys: Tensor,
    values: Tensor | None,
    key_rows: Tensor,
    value_rows: Tensor | None,
    positions: Tensor | None,
    *,
    bits: int,
    groups: tuple[int, int],
    symmetric: bool,
) -> None:
    """Both at once, or only keys where there are no values."""
    batch, heads, tokens, length = keys.shape
    if keys.numel() == 0:
        return
    sides = [(length, groups[0])]
    if values is not None:
        sides.append((values.shape[3], groups[1]))
    height = 1 if tokens == 1 else min(rows_at_once(*side, bits) for side in sides)
    spans = max(groups_of(side[0], span_length(*side)) for side in sides)
    position_strides = (0,) * (2 - positions.dim()) + positions.stride() if positions is not None else (0, 0)
    with torch.cuda.device_of(keys):
        _append[(batch * heads * -(-tokens // height), spans, len(sides))](
            keys,
            values,
            key_rows,
            value_rows,
            positions,
            heads,
            tokens,
            key_rows.shape[2],
            *position_strides,
            *keys.stride()[:3],
            *key_rows.stride()[:3],
            *(values.stride()[:3] if values is not None else (0, 0, 0)),
            *(value_rows.stride()[:3] if value_rows is not None else (0, 0, 0)),
            ROWS=height,
            KEY_LENGTH=length,
            KEY_GROUP=groups[0],
            VALUE_LENGTH=sides[-1][0],
            VALUE_GROUP=sides[-1][1],
            BITS=bits,
            SYMMETRIC=symmetric,
            FOLLOW=positions is not None and positions.dim() == 0,
            KEY_ALIGN=_alignment(key_rows),
            VALUE_ALIGN=_alignment(key_rows if value_rows is None else value_rows),
            num_warps=_WARPS,
        )


def _alignment(rows: Tensor) -> int:
    """The power of two, up to 8, that all strides of rows are multiples of: the words that can be stored at once."""
    found = 8
    for size, stride in zip(rows.shape[:3], rows.stride()[:3], strict=True):
        while size > 1 and stride % found:
            found //= 2
    return found


@triton.jit
def _program_rows(heads, tokens, ROWS: tl.constexpr):
    """What rows a program has: number of the sequence and of the head, and of tokens int64 [ROWS]."""
    tiles = (tokens + ROWS - 1) // ROWS
    outer, first = tl.program_id(0) // tiles, tl.program_id(0) % tiles * ROWS
    return (outer // heads).to(tl.int64), (outer % heads).to(tl.int64), (first + tl.arange(0, ROWS)).to(tl.int64)


@triton.jit
def _encode(
    x,
    words,
    scale,
    zero_point,
    heads,
    tokens,
    stride_0,
    stride_1,
    stride_2,
    LENGTH: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    ROWS: tl.constexpr,
):
    SCALE: tl.constexpr = scale.dtype.element_ty
    GROUPS: tl.constexpr = groups_of(LENGTH, GROUP)
    SCALE_WORDS: tl.constexpr = SCALE.primitive_bitwidth // 16
    sequence, head, token = _program_rows(heads, tokens, ROWS)
    numbers = x + (sequence * stride_0 + head * stride_1) + token * stride_2
    row = (sequence * heads + head) * tokens + token
    to = words + row * row_words(LENGTH, BITS)
    scales = scale.to(tl.pointer_type(tl.int16)) + row * (GROUPS * SCALE_WORDS)
    zeros = to if SYMMETRIC else zero_point + row * GROUPS
    span = tl.program_id(1)
    encode_part(numbers, to, scales, zeros, token < tokens, span, LENGTH, GROUP, BITS, SYMMETRIC, SCALE, ROWS)


@triton.jit
def _write_rows(
    x,
    rows,
    inside,
    LENGTH: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Vectors that begin at x as rows that begin at `rows`, pointers [ROWS] both."""
    SCALE: tl.constexpr = x.dtype.element_ty
    GROUPS: tl.constexpr = groups_of(LENGTH, GROUP)
    scales = rows + row_words(LENGTH, BITS)
    zeros = (scales + GROUPS * SCALE.primitive_bitwidth // 16).to(tl.pointer_type(tl.uint8))
    if not SYMMETRIC and GROUPS % 2 == 1:
        tl.store(zeros + GROUPS, tl.zeros((ROWS,), tl.uint8), mask=inside)
    span = tl.program_id(1)
    here = inside & (span < groups_of(LENGTH, span_length(LENGTH, GROUP)))  # keys may have more spans than values
    encode_part(x, rows, scales, zeros, here, span, LENGTH, GROUP, BITS, SYMMETRIC, SCALE, ROWS)


@triton.jit
def _append(
    keys,
    values,
    key_rows,
    value_rows,
    positions,
    heads,
    tokens,
    capacity,
    position_stride_0,
    position_stride_1,
    key_stride_0,
    key_stride_1,
    key_stride_2,
    key_row_stride_0,
    key_row_stride_1,
    key_row_stride_2,
    value_stride_0,
    value_stride_1,
    value_stride_2,
    value_row_stride_0,
    value_row_stride_1,
    value_row_stride_2,
    ROWS: tl.constexpr,
    KEY_LENGTH: tl.constexpr,
    KEY_GROUP: tl.constexpr,
    VALUE_LENGTH: tl.constexpr,
    VALUE_GROUP: tl.constexpr,
    BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    FOLLOW: tl.constexpr,
    KEY_ALIGN: tl.constexpr,
    VALUE_ALIGN: tl.constexpr,
):
    sequence, head, token = _program_rows(heads, tokens, ROWS)
    inside, place = token < tokens, token
    if positions is not None:
        place = tl.load(positions + sequence * position_stride_0 + token * position_stride_1, mask=inside, other=0)
        place = place.to(tl.int64)
        if FOLLOW:
            place += token
        place = tl.where(place < 0, place + capacity, place)
        inside = inside & (place >= 0) & (place < capacity)
    if tl.program_id(2) == 0:
        x = keys + (sequence * key_stride_0 + head * key_stride_1) + token * key_stride_2
        to = key_rows + tl.multiple_of(sequence * key_row_stride_0 + head * key_row_stride_1, KEY_ALIGN)
        rows = to + tl.multiple_of(place * key_row_stride_2, KEY_ALIGN)
        _write_rows(x, rows, inside, KEY_LENGTH, KEY_GROUP, BITS, SYMMETRIC, ROWS)
    elif values is not None:
        x = values + (sequence * value_stride_0 + head * value_stride_1) + token * value_stride_2
        to = value_rows + tl.multiple_of(sequence * value_row_stride_0 + head * value_row_stride_1, VALUE_ALIGN)
        rows = to + tl.multiple_of(place * value_row_stride_2, VALUE_ALIGN)
        _write_rows(x, rows, inside, VALUE_LENGTH, VALUE_GROUP, BITS, SYMMETRIC, ROWS)


_STRIDES = {f"{side}_stride_{axis}": "i32" for side in ("key", "key_row", "value", "value_row") for axis in range(3)}


def _append_gate(bits: int, group: int, dtype: str, budget: float | None) -> Gate:
    """Keys and values of 128 numbers. The compiler merges the code of both."""
    counts = ("heads", "tokens", "capacity", "position_stride_0", "position_stride_1")
    arguments = {
        **dict.fromkeys(("keys", "values"), f"*{dtype}"),
        **dict.fromkeys(("key_rows", "value_rows"), "*i16"),
        "positions": "*i64",
        **dict.fromkeys(counts, "i32"),
        **_STRIDES,
    }
    constants = {
        **dict.fromkeys(("KEY_LENGTH", "VALUE_LENGTH"), 128),
        **dict.fromkeys(("KEY_GROUP", "VALUE_GROUP"), group),
        "BITS": bits,
        "SYMMETRIC": False,
        "FOLLOW": False,
        **dict.fromkeys(("KEY_ALIGN", "VALUE_ALIGN"), 2),
    }
    vectors = tuple(stride for stride in _STRIDES if "row" not in stride)
    name = f"append KV{bits} g{group} {dtype}"
    return _gate(name, _append, arguments, constants, rows_at_once(128, group, bits), vectors, budget)


def _weight_gate(bits: int, group: int, dtype: str, budget: float | None) -> Gate:
    """A weight of 4096 inputs, which may be one group."""
    strides = ("stride_0", "stride_1", "stride_2")
    arguments = {
        "x": f"*{dtype}",
        "words": "*i16",
        "scale": f"*{dtype}",
        "zero_point": "*u8",
        **dict.fromkeys(("heads", "tokens", *strides), "i32"),
    }
    constants = {"LENGTH": 4096, "GROUP": group, "BITS": bits, "SYMMETRIC": False}
    name = f"encode W{bits} {'per row' if group == 4096 else f'g{group}'} {dtype}"
    return _gate(name, _encode, arguments, constants, rows_at_once(4096, group, bits), strides, budget)


def _gate(
    name: str,
    function: object,
    arguments: Mapping[str, str],
    constants: Mapping[str, object],
    rows: int,
    divisible: tuple[str, ...],
    budget: float | None,
) -> Gate:
    """Instructions are counted by how many more twice the rows take; without a budget they are not."""
    return Gate(
        name,
        function,
        arguments,
        {**constants, "ROWS": rows if budget is None else 2 * rows},
        elements=None if budget is None else 2 * rows * 128,
        options={"num_warps": _WARPS},
        small=None if budget is None else ({"ROWS": rows}, rows * 128),
        budget=budget,
        divisible=divisible,
    )


# A GPU that writes and reads 4.3 TB/s has time for 20 instructions per number of 16 bits that becomes one of 4.
GATES = (
    _append_gate(8, 128, "bf16", 20),
    _append_gate(4, 128, "bf16", 20),
    _append_gate(2, 128, "bf16", 20),
    _append_gate(3, 128, "bf16", None),
    _append_gate(7, 32, "bf16", None),
    _append_gate(4, 64, "fp16", 20),
    _weight_gate(8, 128, "bf16", 20),
    _weight_gate(4, 128, "bf16", 20),
    _weight_gate(2, 64, "bf16", 20),
    _weight_gate(3, 128, "bf16", None),
    _weight_gate(8, 4096, "bf16", None),
    _weight_gate(4, 4096, "fp32", None),
)
