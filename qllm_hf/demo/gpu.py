"""Functions that need an accelerator, marked for ZeroGPU where a page runs there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SECONDS = 120


def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run on a lent GPU where the package `spaces` is importable; elsewhere as it is."""
    try:
        import spaces
    except ImportError:
        return function
    decorated: Callable[..., Any] = spaces.GPU(duration=SECONDS)(function)
    return decorated
