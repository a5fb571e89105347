"""How long kernels take: replays of a CUDA graph, over more memory than the L2 cache holds.

A graph has no launch cost of the host in it, as a decoded token has none when a model runs from a graph. Its calls use
one copy of their operands after the other, as the layers of a model do; with one copy a weight of a few megabytes would
be read from the cache.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

CACHES = 2
"""How many times the L2 cache the copies of an operand fill."""
WARM_UP = 3
SPREAD = 0.25
"""Times whose quartiles lie further apart than this part of the median were disturbed."""


class Times(NamedTuple):
    """Quartiles of the seconds of one call, and of how many replays."""

    first: float
    median: float
    third: float
    replays: int

    @property
    def disturbed(self) -> bool:
        """Whether something else ran on the device, or its clock changed."""
        return self.third - self.first > SPREAD * self.median


def copies(nbytes: int, device: torch.device, fewest: int = 4, most: int = 256) -> int:
    """How many copies of operands of so many bytes keep them out of the L2 cache of a device."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(fewest, min(most, -(-CACHES * cache // max(nbytes, 1))))


def graph_times(calls: Sequence[Callable[[], object]], replays: int = 30, enough: float = 0.5) -> Times:
    """Times of one of the calls, which do the same on different copies of their operands.

    They are captured into one graph, which is replayed until there are as many times as asked for, or `enough` seconds
    have passed and there are five.

    Raises:
        RuntimeError: a call cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    return _quartiles(lambda: graph.replay(), len(calls), replays, enough)


def eager_times(calls: Sequence[Callable[[], object]], replays: int = 30, enough: float = 0.5) -> Times:
    """As `graph_times`, for what no graph can hold: the host's own work counts."""

    def run() -> None:
        for call in calls:
            call()

    for _ in range(WARM_UP):
        run()
    return _quartiles(run, len(calls), replays, enough)


def _quartiles(run: Callable[[], object], calls: int, replays: int, enough: float) -> Times:
    found: list[float] = []
    while len(found) < replays and (len(found) < 5 or sum(found) * calls < enough):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        found.append(start.elapsed_time(stop) / 1e3 / calls)
    first, median, third = statistics.quantiles(found, n=4, method="inclusive")
    return Times(first, median, third, len(found))
