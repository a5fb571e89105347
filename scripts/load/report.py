"""What both campaigns of load share: options, what happened, and how it is told."""

from __future__ import annotations

import argparse
import asyncio
import csv
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .watching import Sample, slope
from .wire import ask

PROBE_SECONDS = 10.0
"""Within which health and lists have to be answered, whatever else is under way."""


class Run:
    """What happened."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []
        self.samples: list[Sample] = []
        self.tidied: list[Sample] = []
        self.probes: list[float] = []
        self.left: dict[str, float] = {}

    def fault(self, text: str) -> None:
        self.faults.append(text)


def add_options(parser: argparse.ArgumentParser, plants: Sequence[str]) -> None:
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=float, default=0.5, help="MB per minute that memory may grow")
    parser.add_argument("--slack", type=float, default=1, help="times all bounds of seconds, on a machine that is busy")
    parser.add_argument("--plant", choices=plants, default="none", help="break it on purpose: the run has to find it")
    parser.add_argument("--csv", type=Path, help="write every look: memory, files, threads")


async def probe(run: Run, port: int, paths: Sequence[str], slack: float) -> None:
    """Ask for what has to be there all the time."""
    while True:
        for path in paths:
            began = time.monotonic()
            try:
                reply = await asyncio.wait_for(ask(port, path), 2 * slack * PROBE_SECONDS)
                if reply.status != 200:
                    run.fault(f"{path}: {reply}")
            except Exception as error:
                run.fault(f"{path}: {type(error).__name__}: {error}")
            run.probes.append(time.monotonic() - began)
        await asyncio.sleep(1)


def memory_lines(run: Run, given: argparse.Namespace) -> list[str]:
    """Memory, files, threads and answers in time, as lines; what is wrong with them becomes faults."""
    grows, raw = (slope(each, 60 * given.minutes / 5) for each in (run.tidied, run.samples))
    first, last = run.tidied[len(run.tidied) // 5], run.samples[-1]
    files, threads = [each.files for each in run.samples], [each.threads for each in run.samples]
    if grows.low > given.most:
        run.fault(f"memory grows by {grows.value:.2f} MB/min, standard error {grows.error:.2f}")
    if files[-1] > files[0] + 10:
        run.fault(f"{files[-1]} files are open at the end, {files[0]} at the start")
    if max(run.probes, default=0.0) > given.slack * PROBE_SECONDS:
        run.fault(f"what has to be there all the time took {max(run.probes):.1f} s")
    return [
        f"in use {first.resident / 1e6:.0f} MB after a fifth, {run.tidied[-1].resident / 1e6:.0f} MB at the end: "
        f"{grows.value:+.3f} MB/min, standard error {grows.error:.3f}",
        f"resident as it is {last.resident / 1e6:.0f} MB: {raw.value:+.3f} MB/min, standard error {raw.error:.3f}",
        f"files {files[0]} at first, {max(files)} at most, {files[-1]} at the end; "
        f"threads {threads[0]}, {max(threads)}, {threads[-1]}",
        f"asked meanwhile {len(run.probes)} times: {statistics.median(run.probes):.3f} s (median), "
        f"{max(run.probes):.2f} s (most)",
    ]


def table(counts: Counter[tuple[str, str]], kinds: Sequence[str]) -> str:
    """Kinds of clients and what came of them, a line each."""
    words = sorted({word for _, word in counts}, key=lambda word: (word == "FAULT", word.isdigit(), word))
    rows = [(kind, *(counts[kind, word] for word in words)) for kind in kinds]
    rows.append((f"all {counts.total()}", *(sum(row[i + 1] for row in rows) for i in range(len(words)))))
    lines = [f"{'client':18}" + "".join(f"{word:>9}" for word in words)]
    return "\n".join(lines + [f"{row[0]:18}" + "".join(f"{count or '-':>9}" for count in row[1:]) for row in rows])


def finish(run: Run, lines: Sequence[str], kinds: Sequence[str], given: argparse.Namespace) -> None:
    """Print everything, and end with 1 if there was a fault."""
    print(table(run.counts, kinds))
    print(*lines, sep="\n")
    if given.csv:
        with given.csv.open("w", newline="") as file:
            looks = [("as it is", *each) for each in run.samples] + [("tidied", *each) for each in run.tidied]
            csv.writer(file).writerows([("memory", *Sample._fields), *looks])
    for text, count in Counter(run.faults).most_common(20):
        print(f"\nFAULT ({count}): {text[:1500]}")
    print(f"\n{len(run.faults)} faults; repeat with --seed {given.seed}")
    sys.exit(1 if run.faults else 0)
