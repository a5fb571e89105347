"""Whether the compiled kernels score as plain torch does: the reference model, every miniature task, every scheme.

    python benchmarks/kernel_scores.py WORK [--items 50] [--dtypes float32,bfloat16] [--schemes W4,W4A8KV4]

Each scheme is evaluated twice, in processes of their own: with the kernels, and with QLLM_HF_CPU=off. WORK keeps the
answers, so that the same command goes on where it stopped; of the tasks with the longest items half as many are asked.

- `changed` counts the items of a task that are worth something else, `items` is out of how many; a text's worth is its
  nats, and is another if it differs by more than a thousandth.
- `likelihood_difference` is the largest difference of the log-likelihood of any choice, in nats.

In float32 the two differ by the order of summation. In bfloat16 plain torch rounds the decoded weights and each product
to 8 bits of mantissa, which the kernels do not: there they differ by that rounding.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import with_machine, write_rows

NAME = "kernel_scores"
SCHEMES = (
    "W8", "W6", "W5", "W4", "W3", "W2", "KV8", "KV4", "KV3", "KV2", "W8A8", "W4A8", "W4A4", "W8A8KV8", "W4KV4",
    "W4A8KV4", "W4, head too",
)  # fmt: skip
HEAD = ", head too"
SAME_TEXT = 1e-3
PATHS = {"kernels": {}, "torch": {"QLLM_HF_CPU": "off"}}


def evaluate(scheme: str, dtype: str, items: int, out: Path) -> None:
    """Answers and scores of one path, into a folder; in the process that has its environment."""
    from qllm_hf import QllmConfig
    from qllm_hf.evaluation import engine
    from qllm_hf.evaluation.miniature import MINIATURE
    from qllm_hf.loading import load_model, load_tokenizer

    config = QllmConfig.from_scheme(scheme.removesuffix(HEAD), quantize_head=scheme.endswith(HEAD))
    model, tokenizer = load_model("reference", config, dtype=dtype).eval(), load_tokenizer("reference")
    longest = [name for name, info in MINIATURE.items() if info.longest >= 1024]
    others = [name for name in MINIATURE if name not in longest]
    for tasks, count in ((others, items), (longest, items // 2)):
        engine.evaluate(model, tokenizer, "tested", tasks, limit=count, out=out)


def read(out: Path) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """(record, its items) of each task in a folder."""
    for line in (out / "records.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        (path,) = out.glob(f"samples/*/*/{record['task']}.jsonl")
        yield record, [json.loads(item) for item in path.read_text(encoding="utf-8").splitlines()]


def compare(scheme: str, dtype: str, folders: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """A row for each task.

    Raises:
        AssertionError: the two paths were not asked the same.
    """
    for (record, items), (other, others) in zip(read(folders["kernels"]), read(folders["torch"]), strict=True):
        assert record["task"] == other["task"] and len(items) == len(others)
        changed, difference = 0, 0.0
        for item, twin in zip(items, others, strict=True):
            assert item["prompt"] == twin["prompt"], record["task"]
            changed += abs(item["value"] - twin["value"]) > (SAME_TEXT if record["chance"] is None else 0.0)
            for (mine, *_), (its, *_) in zip(item.get("likelihoods", ()), twin.get("likelihoods", ()), strict=True):
                difference = max(difference, abs(mine - its))
        yield {
            "dtype": dtype,
            "scheme": scheme,
            "task": record["task"],
            "metric": record["metric"],
            "kernels": f"{record['value']:.6g}",
            "plain_torch": f"{other['value']:.6g}",
            "stderr": f"{other['stderr']:.3g}",
            "items": len(items),
            "changed": changed,
            "likelihood_difference": f"{difference:.3g}" if difference else "",
        }
        assert math.isfinite(record["value"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--schemes", default=";".join(SCHEMES), help="separated by ;")
    parser.add_argument("--one", nargs=3, metavar=("SCHEME", "DTYPE", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        scheme, dtype, out = given.one
        evaluate(scheme, dtype, given.items, Path(out))
        return
    rows: list[dict[str, Any]] = []
    for dtype in given.dtypes.split(","):
        for scheme in given.schemes.split(";"):
            folders = {path: given.work.resolve() / dtype / scheme.replace(" ", "-") / path for path in PATHS}
            for path, variables in PATHS.items():
                command = [sys.executable, __file__, str(given.work), "--items", str(given.items)]
                subprocess.run(
                    [*command, "--one", scheme, dtype, str(folders[path])], env={**os.environ, **variables}, check=True
                )
            found = with_machine(compare(scheme, dtype, folders))
            rows += found
            changed, asked = (sum(row[column] for row in found) for column in ("changed", "items"))
            largest = max(float(row["likelihood_difference"] or 0) for row in found)
            print(f"{dtype} {scheme}: {changed} of {asked} changed, largest difference {largest:.3g}", flush=True)
            path = write_rows(NAME, rows)
    print(path)


if __name__ == "__main__":
    main()
