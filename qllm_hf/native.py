"""Quantize, pack and unpack in compiled code, on tensors: the C++ kernels of `qllm_kernels`, where they can do it.

What they write is bit for bit what torch writes, so nobody has to choose: each function says whether it did the work,
and its caller goes on in torch if not. They read and write memory directly, past torch's dispatcher. Whatever lives
there (gradients, traces, fake tensors, subclasses, modes, a graph that is being compiled) takes torch.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from qllm_kernels import cpu, encode

from .layout import row_words
from .ordinary import is_plain
from .scheme import PER_TENSOR, Spec

TYPES = {torch.float32: cpu.FLOAT32, torch.bfloat16: cpu.BFLOAT16, torch.float16: cpu.FLOAT16}
"""Floating-point types that the kernels take, and their numbers there."""


@functools.cache
def is_there() -> bool:
    """Whether there is a library of kernels that may be used. Why not, `qllm-hf env` says."""
    try:
        encode.functions()
    except cpu.KernelError:
        return False
    return True


def takes(x: Tensor, spec: Spec) -> bool:
    """Whether the kernels can quantize x; what they cannot know before they try is whether all of it is finite."""
    return (
        is_plain(x)
        and is_there()
        and x.dtype in TYPES
        and not spec.paper_exact
        and spec.group_size != PER_TENSOR
        and x.dim() > 0
        and x.numel() > 0
    )


def encode_into(x: Tensor, words: Tensor, scale: Tensor, zero_point: Tensor | None, spec: Spec) -> bool:
    """Whether x [..., K] was quantized and packed into words [..., W], scale [..., G] and zero_point [..., G].

    Those are new, contiguous and on the same device; what they hold is undefined where the answer is no.
    """
    if not takes(x, spec) or scale.dtype not in TYPES:
        return False
    outer = _outer(x)
    if outer is None:
        return False
    sizes, strides = outer
    numbers = encode.numbers(x.data_ptr(), sizes, strides, x.shape[-1], TYPES[x.dtype])
    packed = encode.packed(
        words.data_ptr(),
        scale.data_ptr(),
        0 if zero_point is None else zero_point.data_ptr(),
        _rows_after_rows(sizes, words),
        _rows_after_rows(sizes, scale),
        (0, 0, 0) if zero_point is None else _rows_after_rows(sizes, zero_point),
        max(spec.group_size, 0),
        spec.bits,
        TYPES[scale.dtype],
    )
    return encode.succeeded(encode.functions().encode(numbers, packed, torch.get_num_threads()))


def decode(
    words: Tensor, scale: Tensor, zero_point: Tensor | None, spec: Spec, length: int, dtype: torch.dtype
) -> Tensor | None:
    """The numbers [..., length] that packed codes mean, in `dtype`; None where torch has to find them."""
    if not is_plain(words) or not is_plain(scale) or scale.dtype not in TYPES or dtype not in TYPES:
        return None
    if spec.paper_exact or not is_there() or not words.numel() or (zero_point is not None and not is_plain(zero_point)):
        return None
    if words.shape[-1] != row_words(length, spec.bits):  # torch has the message for it
        return None
    if spec.group_size == PER_TENSOR:  # every row reads the one scale
        scale = scale.expand(*words.shape[:-1], 1)
        zero_point = None if zero_point is None else zero_point.expand(*words.shape[:-1], 1)
    y = words.new_empty((*words.shape[:-1], length), dtype=dtype)
    places = [_outer(y), _outer(words), _outer(scale), _outer(words if zero_point is None else zero_point)]
    if None in places:
        return None
    (sizes, strides), *parts = [place for place in places if place is not None]
    packed = encode.packed(
        words.data_ptr(),
        scale.data_ptr(),
        0 if zero_point is None else zero_point.data_ptr(),
        parts[0][1],
        parts[1][1],
        parts[2][1],
        max(spec.group_size, 0),
        spec.bits,
        TYPES[scale.dtype],
    )
    numbers = encode.numbers(y.data_ptr(), sizes, strides, length, TYPES[dtype])
    return y if encode.succeeded(encode.functions().decode(packed, numbers, torch.get_num_threads())) else None


def encode_rows(x: Tensor, spec: Spec, words: int, rows: Tensor | None = None) -> Tensor | None:
    """Rows int16 [B, H, T, words] of vectors x [B, H, T, D]; None where torch has to make them.

    They are written to `rows`, where that is given: it may be a part of a larger tensor.
    """
    if not takes(x, spec):
        return None
    shape = (*x.shape[:-1], words)
    if rows is None:
        rows = x.new_empty(shape, dtype=torch.int16)
    elif rows.dtype is not torch.int16 or rows.shape != shape or not is_plain(rows):
        return None
    vectors, places = _outer(x), _outer(rows)
    if vectors is None or places is None:
        return None
    numbers = encode.numbers(x.data_ptr(), *vectors, x.shape[-1], TYPES[x.dtype])
    to = encode.rows(rows.data_ptr(), places[1], max(spec.group_size, 0), spec.bits, spec.symmetric)
    return rows if encode.succeeded(encode.functions().encode_rows(numbers, to, torch.get_num_threads())) else None


def decode_rows(rows: Tensor, spec: Spec, length: int, dtype: torch.dtype) -> Tensor | None:
    """The vectors [B, H, T, length] that rows [B, H, T, R] stand for; None where torch has to find them."""
    if not is_plain(rows) or spec.paper_exact or spec.group_size == PER_TENSOR or dtype not in TYPES:
        return None
    if not is_there() or not rows.numel():
        return None
    y = rows.new_empty((*rows.shape[:-1], length), dtype=dtype)
    vectors, places = _outer(y), _outer(rows)
    if vectors is None or places is None:
        return None
    numbers = encode.numbers(y.data_ptr(), *vectors, length, TYPES[dtype])
    source = encode.rows(rows.data_ptr(), places[1], max(spec.group_size, 0), spec.bits, spec.symmetric)
    return y if encode.succeeded(encode.functions().decode_rows(source, numbers, torch.get_num_threads())) else None


def _outer(x: Tensor) -> tuple[encode.Triple, encode.Triple] | None:
    """Sizes of all dimensions but the last as three, and their strides in bytes; None where x cannot be read so."""
    shape, strides, size = x.shape, x.stride(), x.element_size()
    if not shape or (strides[-1] != 1 and shape[-1] != 1):
        return None
    match len(shape):
        case 4:
            return (shape[0], shape[1], shape[2]), (strides[0] * size, strides[1] * size, strides[2] * size)
        case 3:
            return (1, shape[0], shape[1]), (0, strides[0] * size, strides[1] * size)
        case 2:
            return (1, 1, shape[0]), (0, 0, strides[0] * size)
        case 1:
            return (1, 1, 1), (0, 0, 0)
    return ((1, 1, x.numel() // shape[-1]), (0, 0, shape[-1] * size)) if x.is_contiguous() else None


def _rows_after_rows(sizes: encode.Triple, x: Tensor) -> encode.Triple:
    """Strides in bytes of a contiguous x [..., n] whose other dimensions are those three sizes."""
    row = x.shape[-1] * x.element_size()
    return row * sizes[2] * sizes[1], row * sizes[2], row
