"""Quantize, pack and unpack on GPUs: the Triton kernels of `qllm_kernels.gpu`, where they can do it.

As `native` on the CPU: the same bits as torch, and None where the caller has to go on in torch. On a GPU they have to
prove it first: callers go through TRIALS.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from qllm_kernels import gpu

from .ordinary import is_ordinary
from .scheme import PER_TENSOR, Spec
from .trials import Trials

DEVICES = {"cuda"}
"""Types of devices whose tensors the kernels get. Tests add the CPU, in Triton's interpreter."""


TRIALS = Trials("kernels for GPUs", f"{gpu.SETTING}={gpu.OFF} leaves all of them out.")
"""Which of them gave the right answer in this process: these, and those for products and attention."""


def is_for(x: Tensor) -> bool:
    """Whether these functions may be asked about x at all: never in a graph that is being compiled."""
    return x.device.type in DEVICES and not torch.compiler.is_compiling()


def _takes(x: Tensor, spec: Spec) -> bool:
    return (
        x.device.type in DEVICES
        and is_ordinary(x)
        and gpu.missing() is None
        and not spec.paper_exact
        and spec.group_size != PER_TENSOR
    )


def encode(x: Tensor, spec: Spec, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """x [..., K] quantized and packed: words int16 [..., W], scale [..., G] and zero_point uint8 [..., G] or None."""
    if not _takes(x, spec) or x.dim() == 0 or x.numel() == 0:
        return None
    format_ = {"bits": spec.bits, "group_size": spec.group_size}
    if _encode().refuses(**format_, length=x.shape[-1], dtype=x.dtype, scale_dtype=scale_dtype) is not None:
        return None
    found: tuple[Tensor, Tensor, Tensor | None] = _encode().encode(
        x, **format_, symmetric=spec.symmetric, scale_dtype=scale_dtype
    )
    return found


def decode(
    words: Tensor, scale: Tensor, zero_point: Tensor | None, spec: Spec, length: int, dtype: torch.dtype
) -> Tensor | None:
    """The numbers [..., length] in `dtype` that packed codes mean."""
    if not _takes(words, spec) or not words.numel():
        return None
    format_ = {"bits": spec.bits, "group_size": spec.group_size, "length": length, "dtype": dtype}
    if _decode().refuses(words, **format_, scale_dtype=scale.dtype) is not None:
        return None
    found: Tensor = _decode().decode(words, scale, zero_point, **format_)
    return found


def encode_rows(x: Tensor, spec: Spec, words: int, rows: Tensor | None = None) -> Tensor | None:
    """Rows int16 [B, H, T, words] of vectors x [B, H, T, D], written to `rows` where that is given."""
    if not _takes(x, spec) or x.dim() != 4 or x.numel() == 0 or x.stride(-1) != 1:
        return None
    format_ = {"bits": spec.bits, "group_size": spec.group_size}
    if _encode().refuses(**format_, length=x.shape[-1], dtype=x.dtype) is not None:
        return None
    if rows is None:
        rows = x.new_empty((*x.shape[:-1], words), dtype=torch.int16)
    _encode().encode_rows_into(x, rows, **format_, symmetric=spec.symmetric)
    return rows


def decode_rows(rows: Tensor, spec: Spec, length: int, dtype: torch.dtype) -> Tensor | None:
    """The vectors [B, H, T, length] that rows [B, H, T, R] stand for."""
    if not _takes(rows, spec) or rows.dim() != 4 or not rows.numel() or rows.stride(-1) != 1:
        return None
    format_ = {"bits": spec.bits, "group_size": spec.group_size, "length": length, "dtype": dtype}
    if _decode().refuses(rows, **format_) is not None:
        return None
    found: Tensor = _decode().decode_rows(rows, symmetric=spec.symmetric, **format_)
    return found


@functools.cache
def _encode() -> Any:
    # only here, since it needs Triton
    return importlib.import_module("qllm_kernels.gpu.encode")


@functools.cache
def _decode() -> Any:
    return importlib.import_module("qllm_kernels.gpu.decode")
