"""Large pages for large tensors: what a step reads from end to end should not need an address translation per 4 KB."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

from torch import Tensor

SMALLEST = 2**22
"""Bytes from which on it is worth asking: a page has 2 MB, and the ends of a tensor are not whole ones."""
_PAGE = 4096
_HUGE = 14  # MADV_HUGEPAGE, madvise(2)


def on_large_pages(x: Tensor) -> Tensor:
    """x itself, after Linux was asked to back memory that x has not written to yet with pages of 2 MB.

    Only a wish: where it is not granted, or x is small or on another device, nothing changes.
    """
    size = x.numel() * x.element_size()
    if size < SMALLEST or x.device.type != "cpu" or type(x) is not Tensor or not sys.platform.startswith("linux"):
        return x
    first = -(-x.data_ptr() // _PAGE) * _PAGE
    length = (x.data_ptr() + size) // _PAGE * _PAGE - first
    _madvise()(first, length, _HUGE)
    return x


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    found: Callable[[int, int, int], int] = function
    return found
