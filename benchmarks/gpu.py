"""How fast our kernels are on a GPU, beside bfloat16 in torch and other libraries: verified first, then timed.

    python benchmarks/gpu.py [--quick] [--only REGEX] [--seconds 450] [--output DIR] [--no-peers]
    python benchmarks/gpu.py --interpret      only verifies, in Triton's interpreter, on tiny shapes: needs no GPU

Results go to gpu.json and gpu.csv in benchmarks/results, rewritten after each case, so that what was measured is kept
when time runs out. A method whose result is wrong is not timed, and one that cannot run is a row that says why.

- Times are medians of replays of a CUDA graph whose calls use copies of their operands that fill more than twice the
  L2 cache. What no graph can hold is timed as the host launches it, and `graph` is 0.
- `ratio` is the time of bfloat16 in torch (cuBLAS, SDPA) over that of the method; `goal` is what it should reach.
- `gb_per_s` is bytes of the packed weight or history over time; `bytes_ratio` those of bfloat16 over them.
- `error` is |y - expected| / |expected| in float64 (0 where bits are compared), `allowed` its limit.

With goals: exit status 1 if one of our results is wrong. Missing a goal is no error.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from gpu_cases import Case, Method

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = (
    "operation", "shape", "size", "format", "method", "library", "version", "us", "q1_us", "q3_us", "replays", "graph",
    "disturbed", "bf16_us", "ratio", "goal", "nbytes", "bytes_ratio", "gb_per_s", "error", "allowed", "remark",
)  # fmt: skip
MACHINE = ("device", "python", "torch", "cuda", "triton")


def machine(device: torch.device) -> dict[str, str]:
    """What a result must carry with it."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "Triton's interpreter",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "triton": metadata.version("triton"),
    }


def rows_of(case: Case, device: torch.device, peers: bool) -> Iterator[dict[str, Any]]:
    """A row for each method of a case."""
    from gpu_peers import peers_of, version_of

    made: list[tuple[str, str, Method | str]] = []
    try:
        methods = case.methods(device)
        made += [(method.name, method.library, method) for method in methods]
    except Exception as error:  # of any kind: the reason is the result
        made.append(("all", "qllm_hf", reason_of(error)))
    for name, library, make in peers_of(case) if peers else ():
        try:
            made.append((name, library, make(device)))
        except Exception as error:
            made.append((name, library, reason_of(error)))
    baseline, size = 0.0, 0
    for name, library, method in made:
        row = dict.fromkeys(COLUMNS, "")
        row |= {"operation": case.operation, "shape": case.shape, "size": case.size, "format": case.form}
        row |= {"method": name, "library": library, "version": version_of(library)}
        row["goal"] = case.goal.get(name, "") if library == "qllm_hf" else ""
        if isinstance(method, str):
            row["remark"] = method
        else:
            try:
                row |= numbers(method, device)
            except Exception as error:
                row["remark"] = reason_of(error)
        size = size or row["nbytes"]
        baseline = baseline or row["us"] or 0.0
        if baseline and row["us"]:
            row |= {"bf16_us": round(baseline, 3), "ratio": round(baseline / row["us"], 3)}
        if size and row["nbytes"]:
            row["bytes_ratio"] = round(size / row["nbytes"], 3)
        yield row


def numbers(method: Method, device: torch.device) -> dict[str, Any]:
    """The columns of a method that gives the right result; on a GPU, its times too.

    Raises:
        WrongResult: it does not.
    """
    error = method.verify()
    found: dict[str, Any] = {"nbytes": method.nbytes}
    if error is not None:
        found |= {"error": f"{error:.3e}", "allowed": f"{method.allowed:.3e}"}
    if device.type != "cuda":
        return found | {"remark": "verified, not timed"}
    from qllm_kernels.gpu.timing import copies, eager_times, graph_times

    operands = [method.prepare() for _ in range(copies(method.nbytes, device) if method.graph else 1)]
    calls = [lambda each=each: method.run(each) for each in operands]
    times = (graph_times if method.graph else eager_times)(calls)
    us = times.median * 1e6
    return found | {
        "us": round(us, 3),
        "q1_us": round(times.first * 1e6, 3),
        "q3_us": round(times.third * 1e6, 3),
        "replays": times.replays,
        "graph": int(method.graph),
        "disturbed": int(times.disturbed),
        "gb_per_s": round(method.nbytes / us / 1e3, 1),
    }


def reason_of(error: Exception) -> str:
    """What it says, in one line; its kind too where it is not one of ours."""
    text = " ".join(str(error).split())
    return (text if type(error).__name__ in ("WrongResult", "NotHere") else f"{type(error).__name__}: {text}")[:200]


def write(output: Path, rows: Sequence[dict[str, Any]], about: dict[str, str]) -> None:
    """gpu.json and gpu.csv, each whole at every moment."""
    output.mkdir(parents=True, exist_ok=True)
    partial = output / ".gpu.partial"
    partial.write_text(json.dumps({"machine": about, "rows": list(rows)}, indent=1) + "\n", encoding="utf-8")
    partial.replace(output / "gpu.json")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *MACHINE], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **about} for row in rows)
    partial.replace(output / "gpu.csv")


def shown(row: dict[str, Any]) -> str:
    """A row for people."""
    goal = f" of {row['goal']}" if row["goal"] != "" else ""
    ratio = f"{row['ratio']:6.2f}x{goal}" if row["ratio"] != "" else ""
    times = f"{row['us']:10.2f} us {ratio:14s} {row['gb_per_s']:7.0f} GB/s" if row["us"] != "" else ""
    error = f" error {row['error']}" if row["error"] != "" else ""
    what = f"{row['operation']:9s} {row['shape']:16s} {row['size']:6d} {row['format']:15s} {row['method']:22s}"
    return f"{what} {times}{error} {row['remark']}".rstrip()


def missed(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Goals that were not reached, in words."""
    for row in rows:
        if row["goal"] != "" and row["ratio"] != "" and row["ratio"] < row["goal"]:
            what = f"{row['operation']} {row['shape']} {row['size']} {row['format']} {row['method']}"
            yield f"missed: {what}: {row['ratio']} of {row['goal']}"


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one case of each kind")
    parser.add_argument("--interpret", action="store_true", help="verify on a processor, in Triton's interpreter")
    parser.add_argument("--only", default="", help="regular expression: cases whose name it finds")
    parser.add_argument("--seconds", type=float, default=450.0, help="no case begins later than this")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of gpu.json and gpu.csv")
    parser.add_argument("--no-peers", action="store_true", help="only ours and bfloat16")
    given = parser.parse_args(arguments)
    start = time.monotonic()
    if given.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    elif not torch.cuda.is_available():
        print("nothing to measure: torch finds no GPU (--interpret verifies without one)", file=sys.stderr)
        return 1
    device = torch.device("cpu") if given.interpret else torch.device("cuda", torch.cuda.current_device())
    from gpu_cases import all_cases, quick_cases, tiny_cases

    from qllm_kernels.gpu import missing

    if missing() is not None:
        print(f"nothing to measure: {missing()}", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    cases = tiny_cases() if given.interpret else quick_cases() if given.quick else all_cases()
    rows: list[dict[str, Any]] = []
    late = 0
    for case in cases:
        if not re.search(given.only, f"{case.operation} {case.shape} {case.size} {case.form}"):
            continue
        if time.monotonic() - start > given.seconds:
            late += 1
            continue
        for row in rows_of(case, device, not given.no_peers):
            rows.append(row)
            print(shown(row), flush=True)
        if device.type == "cuda":
            write(given.output, rows, machine(device))
            torch.cuda.empty_cache()
    for line in missed(rows):
        print(line)
    if late:
        print(f"{late} cases were not begun in {given.seconds:.0f} s")
    wrong = [row for row in rows if row["library"] == "qllm_hf" and row["remark"] not in ("", "verified, not timed")]
    print(f"{len(rows)} rows, {len(wrong)} of ours did not run or were wrong, {time.monotonic() - start:.0f} s")
    return int(bool(wrong) or not rows)


if __name__ == "__main__":
    sys.exit(main())
