"""Memory: what there is, what a run took at most, and how its lack looks.

What a run took is counted by torch's allocators, on the CPU as on a GPU: tensors, and none of the buffers that
libraries keep for themselves. The resident size of the process would say more of the system's allocator, which keeps
what an earlier run freed, than of the run.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")
_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")
_WORDS: Final = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory")
_SPARE: Final = 0.05
"""Part of what is free that is left alone."""


def available_bytes(device: torch.device) -> int | None:
    """Bytes that can still be had on a device, a little left alone; None where the system does not say."""
    if device.type == "cuda":
        free = 0
        for index in _indices(device):
            cached = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
            free += torch.cuda.mem_get_info(index)[0] + cached
        return int(free * (1 - _SPARE))
    found = [value for value in (_free_of_system(), _free_of_container()) if value is not None]
    return int(min(found) * (1 - _SPARE)) if found else None


def _indices(device: torch.device) -> list[int]:
    """Of the GPU that is meant, or of all: a model may be spread over them."""
    return list(range(torch.cuda.device_count())) if device.index is None else [device.index]


def _free_of_system() -> int | None:
    if not _MEMINFO.is_file():
        return None
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _free_of_container() -> int | None:
    limit, used = (_CGROUP / name for name in ("memory.max", "memory.current"))
    if not limit.is_file() or not used.is_file() or not limit.read_text().strip().isdigit():
        return None
    return max(int(limit.read_text()) - int(used.read_text()), 0)


def peak_of(device: torch.device, run: Callable[[], T]) -> tuple[T, int]:
    """What `run` gives, and the most bytes that tensors made by it took at one time. It runs slower than usual."""
    if device.type != "cuda":
        result, levels = levels_of(run)
        return result, max(levels, default=0)
    for index in _indices(device):
        torch.cuda.reset_peak_memory_stats(index)
    before = sum(map(torch.cuda.memory_allocated, _indices(device)))
    result = run()
    return result, max(sum(map(torch.cuda.max_memory_allocated, _indices(device))) - before, 0)


def levels_of(run: Callable[[], T]) -> tuple[T, list[int]]:
    """What `run` gives, and after each allocation on the CPU how many bytes its tensors take."""
    log: Any = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _nothing_on_stderr():
        log.start()
        try:
            result = run()
        finally:
            log.stop()
    events = [event for event in log.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return result, list(itertools.accumulate(event.nbytes() for event in events))


@contextlib.contextmanager
def _nothing_on_stderr() -> Iterator[None]:
    """torch's profiler tells of itself there, from C++ and past all logging. Errors are exceptions, and still come."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a lack of memory: torch has a class for that on a GPU, and only words on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def free() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
