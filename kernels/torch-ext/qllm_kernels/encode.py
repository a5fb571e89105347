"""Numbers to packed codes and back: the calls, on addresses.

Descriptions are the bytes of a struct of qllm_cpu.h: to make a ctypes.Structure takes longer than to encode a token.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable
from typing import NamedTuple

from .cpu import KernelError, library

Triple = tuple[int, int, int]
Call = Callable[[bytes, bytes, int], int]

OK, NOT_FINITE = 0, 3
_NUMBERS = struct.Struct("@P7qii").pack
_PACKED = struct.Struct("@PPP10qiiii").pack
_ROWS = struct.Struct("@P4qii").pack


class Functions(NamedTuple):
    """Each takes two descriptions and a number of threads, and returns a status."""

    encode: Call
    decode: Call
    encode_rows: Call
    decode_rows: Call


@functools.cache
def functions() -> Functions:
    """The functions of the library.

    Raises:
        KernelError: there is none (the message says why), or it lacks them.
    """
    # the library that is open already; no declared arguments, checking them would take longer than the call
    opened = ctypes.CDLL(str(library().path))
    try:
        return Functions(opened.qllm_encode, opened.qllm_decode, opened.qllm_encode_rows, opened.qllm_decode_rows)
    except AttributeError as error:
        raise KernelError(f"{opened._name} is of another version: {error}") from None


def numbers(data: int, sizes: Triple, strides: Triple, length: int, kind: int) -> bytes:
    """Numbers [sizes, length] of one type: address, sizes, strides in bytes. The last dimension is contiguous."""
    return _NUMBERS(data, *sizes, *strides, length, kind, 0)


def packed(
    words: int,
    scale: int,
    zero_point: int,
    word_strides: Triple,
    scale_strides: Triple,
    zero_strides: Triple,
    group_size: int,
    bits: int,
    scale_kind: int,
) -> bytes:
    """Where such numbers lie packed: addresses (no zero points: 0, symmetric) and strides in bytes.

    A `group_size` of 0 is one group for each vector.
    """
    strides = (*word_strides, *scale_strides, *zero_strides)
    return _PACKED(words, scale, zero_point, *strides, group_size, bits, scale_kind, 0, 0)


def rows(data: int, strides: Triple, group_size: int, bits: int, symmetric: bool) -> bytes:
    """Rows of a cache: address, strides in bytes."""
    return _ROWS(data, *strides, group_size, bits, symmetric)


def succeeded(status: int) -> bool:
    """Whether a call did its work: not, where numbers are not finite.

    Raises:
        KernelError: the library refuses.
    """
    if status == OK:
        return True
    if status == NOT_FINITE:
        return False
    raise KernelError("not enough memory" if status == 2 else "the kernel failed: an argument that no kernel takes")
