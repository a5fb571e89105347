"""Attention over packed keys and values: the call, on addresses."""

from __future__ import annotations

import ctypes
import functools
import itertools
import struct
from collections.abc import Callable

from .cpu import check, library
from .encode import Triple

__all__ = ["BOOL", "SCORES", "VALUES", "WHOLE", "check", "fits", "function", "request", "rows"]

Call = Callable[[bytes, bytes, bytes, int], int]

BOOL = 3  # the type of a mask of flags, besides those of numbers
WHOLE, SCORES, VALUES = 0, 1, 2  # qllm_part
LONGEST, MOST_SEGMENTS, MOST_PLACES = 512, 32, 1024  # attention_rows.h
_BLOCK, _REGISTER = 128, 64
_REQUEST = struct.Struct("@4P11qffiiii").pack
_ROWS = struct.Struct("@P5qiiii").pack


@functools.cache
def function() -> Call:
    """Takes descriptions of the request, the keys and the values, and a number of threads; returns a status.

    Raises:
        KernelError: there is no library (the message says why).
    """
    # no declared arguments: checking them would take longer than a short call
    call: Call = ctypes.CDLL(str(library().path)).qllm_attend
    return call


@functools.cache
def fits(length: int, group_size: int) -> bool:
    """Whether rows of so many codes, with a scale per group, are not too long for the kernel."""
    size = group_size if 0 < group_size < length else length
    cuts = sorted({*range(0, length, size), *range(0, length, _BLOCK), length})
    places = sum(-(-(stop - start) // _REGISTER) * _REGISTER for start, stop in itertools.pairwise(cuts))
    return length <= LONGEST and len(cuts) - 1 <= MOST_SEGMENTS and places <= MOST_PLACES


def request(
    query: int,
    out: int,
    mask: int,
    sinks: int,
    shape: tuple[int, int, int, int, int],
    query_strides: Triple,
    mask_strides: Triple,
    scale: float,
    softcap: float,
    kind: int,
    mask_kind: int,
    causal: bool,
    part: int,
) -> bytes:
    """Addresses (0 for none), [batch, key heads, queries per head, positions, tokens], strides in elements."""
    return _REQUEST(
        query, out, mask, sinks, *shape, *query_strides, *mask_strides, scale, softcap, kind, mask_kind, causal, part
    )


def rows(data: int, strides: Triple, length: int, group_size: int, bits: int, kind: int, symmetric: bool) -> bytes:
    """Keys or values as they are cached: address, strides in bytes."""
    return _ROWS(data, *strides, length, group_size, bits, kind, symmetric, 0)
