"""Functions that need an accelerator, marked for ZeroGPU where a page runs there."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

SECONDS = 120


def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run on a lent GPU where the package `spaces` is installed; elsewhere as it is."""
    try:
        spaces: Any = importlib.import_module("spaces")
    except ImportError:
        return function
    # a folder of that name, such as the one of this repository, can be imported too, and is another thing
    lend = getattr(spaces, "GPU", None)
    return function if lend is None else lend(duration=SECONDS)(function)
