"""A process, looked at once a second: memory, files and threads; and whether its memory grows."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import statistics
import time
import urllib.request
from collections.abc import Sequence
from typing import Any, NamedTuple

import psutil

BLOCK_SECONDS = 10
"""Samples are averaged over so long: neighbours are not independent, and would make the error look small."""


class Sample(NamedTuple):
    """One look: seconds since the start, bytes, and counts."""

    seconds: float
    resident: int
    files: int
    threads: int


class Slope(NamedTuple):
    """MB per minute, and its standard error."""

    value: float
    error: float

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval."""
        return self.value - 1.96 * self.error


async def watch(pid: int, samples: list[Sample]) -> None:
    """Add a sample per second, until it is cancelled or the process ends."""
    process, began = psutil.Process(pid), time.monotonic()
    while process.is_running():
        with process.oneshot():
            files = process.num_fds()
            samples.append(Sample(time.monotonic() - began, process.memory_info().rss, files, process.num_threads()))
        await asyncio.sleep(1)


async def watch_tidied(window: int, samples: list[Sample]) -> None:
    """Add what a process has in use every few seconds, until it is cancelled; `window` is that of `observed.py`."""
    began = time.monotonic()
    while True:
        resident = await asyncio.to_thread(ask_window, window, "/resident")
        samples.append(Sample(time.monotonic() - began, resident, 0, 0))
        await asyncio.sleep(BLOCK_SECONDS / 2)


def ask_window(window: int, path: str = "/") -> Any:
    """What the window of a process shows."""
    with urllib.request.urlopen(f"http://127.0.0.1:{window}{path}", timeout=60) as reply:
        return json.load(reply)


def slope(samples: Sequence[Sample], after: float) -> Slope:
    """Of resident memory, by least squares over blocks of samples that are later than `after` seconds.

    The error counts neighbouring residuals that are alike (their correlation inflates the variance).
    """
    blocks: dict[int, list[float]] = {}
    for sample in samples:
        if sample.seconds >= after:
            blocks.setdefault(int(sample.seconds // BLOCK_SECONDS), []).append(sample.resident / 1e6)
    if len(blocks) < 4:
        return Slope(0.0, math.inf)
    minutes = [(block + 0.5) * BLOCK_SECONDS / 60 for block in blocks]
    values = [statistics.fmean(found) for found in blocks.values()]
    middle = statistics.fmean(minutes)
    spread = sum((minute - middle) ** 2 for minute in minutes)
    rise = sum((minute - middle) * value for minute, value in zip(minutes, values, strict=True)) / spread
    level = statistics.fmean(values) - rise * middle
    rest = [value - level - rise * minute for minute, value in zip(minutes, values, strict=True)]
    squares = sum(each**2 for each in rest)
    alike = sum(first * second for first, second in itertools.pairwise(rest)) / squares if squares else 0.0
    alike = min(max(alike, 0.0), 0.9)
    variance = squares / (len(rest) - 2) / spread * (1 + alike) / (1 - alike)
    return Slope(rise, math.sqrt(variance))
