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


SETTING = "QLLM_HF_GPU"


def missing() -> str | None:
    """Why no kernel for GPUs runs here, or None."""
    if not INTERPRETED and os.environ.get(SETTING) != "1":
        return f"nobody has run these kernels on a GPU yet: {SETTING}=1 uses them"
    reason = _no_triton()
    if reason is None and not INTERPRETED and not torch.cuda.is_available():
        return "torch finds no GPU"
    return reason
