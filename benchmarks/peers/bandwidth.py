"""How fast this machine reads memory: the limit of any product with one token."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

BYTES = 1_200_000_000
REPEATS = 5


def read_bandwidth() -> tuple[float, str]:
    """GB/s (1e9 bytes) that all of torch's threads read together, and what measured it.

    Our kernels' library measures it with several streams a thread, where it is there. Otherwise torch sums a tensor
    larger than any cache, which is a lower bound.
    """
    ours = _ours()
    if ours is not None:
        return ours() / 1e9, "qllm_hf"
    data = torch.ones(BYTES // 8, dtype=torch.int64)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        data.sum()
        seconds.append(time.perf_counter() - start)
    return BYTES / statistics.quantiles(seconds, n=4)[0] / 1e9, "torch sum"


def _ours() -> Callable[[], float] | None:
    """`qllm_hf.ops.cpu.read_bandwidth() -> bytes per second`, if this installation has it."""
    try:
        from qllm_hf.ops import cpu
    except ImportError:
        return None
    found: Callable[[], float] | None = getattr(cpu, "read_bandwidth", None)
    return found
