"""What a decoding step costs beside its arithmetic: models with all layers of a real one and next to no width.

    python benchmarks/overhead.py WORK [--rounds 40]

WORK keeps the checkpoints. Each model has the layers of a shape of benchmarks/speed.py, 128 wide: what is left of the
time of a step is Python, dispatch and allocation, transformers' own and ours. Batch 1, 2 threads, 128 tokens in the
cache; the float model and the packed ones decode in turns in one process. `above_bf16_us` is what ours adds, or, where
it is negative, saves: layers that share their input are one call.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "2"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from machine import with_machine, write_rows
from peers.interleaved import Samples
from peers.models import BASELINE, Runner, bfloat16, ours
from speed import SHAPES, make_model

NAME = "overhead"
SCHEMES = ("W8", "W4", "W4A8", "W4KV4")
NARROW = dict(hidden_size=128, intermediate_size=128, num_attention_heads=2, num_key_value_heads=1, vocab_size=256)
CONTEXT, TOKENS = 128, 4


def rows_of(name: str, work: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for each method."""
    folder = work / f"narrow-{name}"
    make_model(folder, {**SHAPES[name], **NARROW})
    loads = {BASELINE: bfloat16, **{f"qllm_hf {scheme}": partial(ours, scheme=scheme) for scheme in SCHEMES}}
    runners: dict[str, Runner] = {method: load(folder, work) for method, load in loads.items()}
    samples = {method: Samples() for method in runners}
    for number in range(rounds + 1):
        for method, runner in runners.items():
            if number % 10 == 0:
                runner.fill(CONTEXT)
            for sample in runner.decode(TOKENS):
                if number:
                    samples[method].add(sample)
    times = {method: found.times() for method, found in samples.items()}
    return [
        {
            "model": name,
            "layers": SHAPES[name]["num_hidden_layers"],
            "method": method,
            "us_per_step": f"{found.median * 1e6:.0f}",
            "q1_us": f"{found.first * 1e6:.0f}",
            "q3_us": f"{found.third * 1e6:.0f}",
            "samples": found.samples,
            "dropped": found.dropped,
            "above_bf16_us": f"{(found.median - times[BASELINE].median) * 1e6:.0f}",
        }
        for method, found in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    rows: list[dict[str, Any]] = []
    for name in SHAPES:
        found = rows_of(name, given.work.resolve(), given.rounds)
        for row in found:
            print(*row.values(), sep="  ", flush=True)
        rows += with_machine(found)
    print(write_rows(NAME, rows))


if __name__ == "__main__":
    main()
