"""What bits cost the reference model: every miniature task under every scheme, with standard errors.

    python benchmarks/reference_model.py [--items 400] [--schemes FP16,W4] [--again]

Of the two tasks with the longest items, which take most of the time, half as many are asked.
Schemes that are in results/reference_model.csv already are kept; --again measures them anew. The dtype is that of the
checkpoint, bfloat16; FP32 is the same model in float32.
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import asdict
from typing import Any

from machine import RESULTS, with_machine, write_rows

import qllm_hf
from qllm_hf.evaluation.engine import evaluate
from qllm_hf.evaluation.miniature import ITEMS, MINIATURE
from qllm_hf.loading import load_model, load_tokenizer

NAME = "reference_model"
SCHEMES = ("FP32", "FP16", "W8", "W4", "W3", "W2", "KV8", "KV4", "KV3", "KV2", "W8A8", "W4A8", "W4A4", "W4KV8")
FLOAT = {"FP32": "float32", "FP16": "auto"}


def measure(scheme: str, items: int) -> list[dict[str, Any]]:
    """One row per task."""
    config = None if scheme in FLOAT else qllm_hf.QllmConfig.from_scheme(scheme)
    model = load_model("reference", config, dtype=FLOAT.get(scheme, "auto"))
    tokenizer = load_tokenizer("reference")
    last = time.perf_counter()
    rows = []

    def add(record: Any) -> None:
        nonlocal last
        now = time.perf_counter()
        rows.append({**asdict(record), "seconds": f"{now - last:.2f}"})
        last = now
        print(
            f"{scheme:6} {record.task:18} {record.value:8.4f} ({record.stderr:.4f}) {rows[-1]['seconds']} s", flush=True
        )

    longest = [name for name, info in MINIATURE.items() if info.longest >= 1024]
    others = [name for name in MINIATURE if name not in longest]
    for tasks, count in ((others, items), (longest, items // 2)):
        evaluate(model, tokenizer, scheme, tasks, limit=count, progress=add)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=ITEMS, help="of each task")
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    path = RESULTS / f"{NAME}.csv"
    found: dict[str, list[dict[str, Any]]] = {}
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["scheme"], []).append(dict(row))
    for scheme in arguments.schemes.split(","):
        if arguments.again or scheme not in found:
            found[scheme] = with_machine(measure(scheme, arguments.items))
            order = sorted(found, key=lambda name: SCHEMES.index(name) if name in SCHEMES else len(SCHEMES))
            write_rows(NAME, [row for name in order for row in found[name]])
    print(path)


if __name__ == "__main__":
    main()
