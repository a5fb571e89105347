"""Kernels in Triton for GPUs, on the packed layout as it is stored.

Importable everywhere; `missing` says why they cannot run. All other files of this folder need Triton.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton runs kernels in Python, on tensors of any device: for tests, thousands of times slower."""


@functools.cache
def _no_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it comes with torch for CUDA and ROCm)"
    return None


@functools.cache
def _old_triton() -> str | None:
    import triton  # takes a while, so it is asked last

    if not hasattr(triton, "constexpr_function"):
        return f"Triton {triton.__version__} is too old: the kernels take 3.5, which comes with torch 2.9, and newer"
    return None


SETTING, OFF = "QLLM_HF_GPU", "off"
OLDEST = (8, 0)
"""Compute capability of the oldest GPUs that the kernels are compiled for."""


def missing() -> str | None:
    """Why no kernel for GPUs runs here, or None."""
    setting = os.environ.get(SETTING) or None
    if setting == OFF:
        return f"turned off by {SETTING}={OFF}"
    if setting is not None:
        return f"{SETTING}={setting!r}: allowed is {OFF}"
    return _no_triton() or (None if INTERPRETED else _no_gpu()) or _old_triton()


@functools.cache
def _no_gpu() -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    if torch.version.hip is not None:
        return "the kernels have assembly for GPUs of NVIDIA"
    oldest = min(torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count()))
    if oldest < OLDEST:
        return f"a GPU of compute capability {oldest[0]}.{oldest[1]}: takes {OLDEST[0]}.{OLDEST[1]} and newer"
    return None
