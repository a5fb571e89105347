"""How fast products of tokens with quantized weights are on a CPU: ours, torch's, and other libraries'.

    python benchmarks/linear.py [--shapes 4096x4096,576x1536] [--tokens 1,4,16,64,512] [--methods REGEX] [--rounds 30]
        [--implementation cpu] [--again]

One process runs all methods in turns on the same weight and tokens, on 2 threads, and results/linear.csv has their
medians. Each result is verified first, against a product in float64 with the weight that the method's own codes mean
(where the library does not tell, with the original weight, within what the bits allow). A wrong one is not timed.
Activations are bfloat16 and come in the form in which a library's own layers hand them on. Weights are rotated
through more bytes than the last-level cache holds. Rows that are there already, of the same versions, are kept.

- `ratio` is the median time of bfloat16 `F.linear` in the same rounds over that of the method.
- `gb_per_s` is bytes of the packed weight over time, `read_gb_per_s` what the machine can read in the same minute.
- `error` is |y - expected| / |expected| with the codes' own weight, `error_to_float` with the original one.

Libraries that are not installed are rows that say so: torchao, optimum-quanto, hqq, bitsandbytes, auto-round-lib,
llama-cpp-python (built here with CMAKE_ARGS=-DGGML_NATIVE=ON, so that it uses what the processor has).
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

os.environ["OMP_NUM_THREADS"] = "2"  # the one pool of threads that torch and all of these libraries share

import torch
from machine import RESULTS, key_of, machine, read_rows, write_rows
from peers import aten, autoround, ggml, modules, ours
from peers.bandwidth import read_bandwidth
from peers.interleaved import Call, Times, interleave, round_bytes
from peers.method import Method, NotHere, bytes_of, quiet
from torch import Tensor

NAME = "linear"
THREADS = 2
SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008), (576, 1536), (1536, 576))
TOKENS = (1, 4, 16, 64, 512)
CACHE_BYTES = 600_000_000
CHECKED = 16  # tokens of a large batch whose results are compared, from both ends
KEY = ("n", "k", "tokens", "method")
OWN_LIMIT = {16: 0.01, 8: 0.03, 4: 0.3}
"""Largest relative error against the weight that the codes mean, by bits of activations whose rounding is not known."""
FLOAT_LIMIT = {8: 0.03, 4: 0.2, 3: 0.4, 2: 0.8}
"""Against the original weight, by bits of the weight."""
NOT_QUANTIZED = 0.02
"""At 4 bits or fewer, what is closer to the original weight than this computes with the original weight."""


@dataclass(frozen=True)
class Checked:
    """A method that gave the right result: its prepared weight, and the relative errors."""

    method: Method
    state: Any
    error: float | None
    error_to_float: float | None


def make_weight(n: int, k: int) -> Tensor:
    """A float32 weight [n, k] of numbers that bfloat16 holds; each group of 64 has a mean of its own, so that a zero
    point that is off shows."""
    torch.manual_seed(0)
    weight = 0.02 * torch.randn(n, k)
    weight.view(n, -1, 64).add_(0.006 * torch.randn(n, k // 64, 1))
    return weight.bfloat16().float()


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [M, K] times weight [N, K] in float64, some rows at a time."""
    return torch.cat([x.double() @ rows.double().T for rows in weight.split(1024)], -1)


def verify(method: Method, state: Any, weight: Tensor, x: Tensor) -> Checked:
    """The method with its errors on these tokens.

    Raises:
        ValueError: the result is wrong.
    """
    with quiet():
        y = method.run(state, method.inputs(x))
    some = torch.arange(len(x))
    if len(x) > CHECKED:
        some = torch.cat((some[: CHECKED // 2], some[-CHECKED // 2 :]))
    y, tokens = y[some], x[some]
    error = to_float = None
    if method.meant is not None:
        taken = tokens if method.rounded is None else method.rounded(tokens)
        error = relative_error(y, product(taken, method.meant(state)))
        limit = OWN_LIMIT[16 if method.rounded is not None else method.activation_bits]
        if not error < limit:
            raise ValueError(f"wrong: relative error {error:.4f} against its own weight, allowed is {limit}")
    if method.scaled:
        to_float = relative_error(y, product(tokens, weight))
        if method.bits <= 4 and to_float < NOT_QUANTIZED:
            raise ValueError(f"wrong: relative error {to_float:.4f} against the original weight, as if it were that")
        limit = FLOAT_LIMIT.get(method.bits, 0.0)
        if method.meant is None and not to_float < limit:
            raise ValueError(f"wrong: relative error {to_float:.4f} against the original weight, allowed is {limit}")
    return Checked(method, state, error, to_float)


def about(checked: Checked, inputs: Any) -> float:
    """Seconds of a call, the least of three."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        checked.method.run(checked.state, inputs)
        found.append(time.perf_counter() - start)
    return min(found)


def measure(chosen: list[Checked], x: Tensor, rounds: int) -> tuple[dict[str, Times], dict[str, int], float, str]:
    """Times and bytes of weights by name, and the memory's read bandwidth in GB/s with who measured it."""
    bandwidth, source = read_bandwidth()
    inputs = {checked.method.name: checked.method.inputs(x) for checked in chosen}
    copies: dict[str, list[Any]] = {}
    calls = []
    for checked in chosen:
        name = checked.method.name
        copies[name] = [checked.method.clone(checked.state)]
        run = partial(_run, checked.method, copies[name], inputs[name])
        calls.append(Call(name, run, about(checked, inputs[name]), bytes_of(copies[name][0])))
    whole = round_bytes(calls)
    for call, checked in zip(calls, chosen, strict=True):
        wanted = call.copies(whole, CACHE_BYTES)
        copies[call.name] += [checked.method.clone(checked.state) for _ in range(wanted - 1)]
        for place in range(wanted):
            call.run(place)  # what is made once per copy is made here
    sizes = {name: len(found) for name, found in copies.items()}
    return interleave(calls, sizes, rounds), {call.name: call.nbytes for call in calls}, bandwidth, source


def _run(method: Method, copies: list[Any], inputs: Any, place: int) -> Tensor:
    return method.run(copies[place], inputs)


def rows_of_shape(
    n: int, k: int, todo: dict[int, list[Method]], baseline: Method, rounds: int
) -> Iterator[dict[str, Any]]:
    """Rows of the methods to measure, by number of tokens."""
    weight = make_weight(n, k)
    states: dict[str, Any] = {}
    said: dict[str, str] = {}
    for method in {method.name: method for methods in todo.values() for method in [baseline, *methods]}.values():
        try:
            with quiet():
                states[method.name] = method.prepare(weight)
        except Exception as error:  # of any library, of any kind: the reason is the result
            said[method.name] = reason_of(error)
    for tokens, methods in todo.items():
        x = torch.randn(tokens, k, generator=torch.Generator().manual_seed(tokens)).bfloat16()
        chosen, reasons = [], dict(said)
        for method in [baseline, *methods]:
            if method.name in states:
                try:
                    chosen.append(verify(method, states[method.name], weight, x))
                except Exception as error:
                    reasons[method.name] = reason_of(error)
        times, sizes, bandwidth, source = measure(chosen, x, rounds)
        base = times[baseline.name].median
        measured = {checked.method.name: checked for checked in chosen}
        for method in [baseline, *methods]:
            row = {"n": n, "k": k, "tokens": tokens, "method": method.name, "library": method.library}
            row |= {"version": method.version(), "bits": method.bits, "group_size": method.group_size}
            row |= {"activation_bits": method.activation_bits}
            found = measured.get(method.name)
            result = EMPTY
            if found is not None:
                result = numbers(times[method.name], base, sizes[method.name], found)
                result |= {"read_gb_per_s": f"{bandwidth:.1f}", "read_by": source}
                if times[method.name].disturbed:
                    reasons[method.name] = "few undisturbed samples"
            yield {**row, **result, "remark": reasons.get(method.name, ""), **machine()}


def numbers(times: Times, base: float, nbytes: int, checked: Checked) -> dict[str, Any]:
    """The columns that were measured."""
    return {
        "median_us": f"{times.median * 1e6:.2f}",
        "q1_us": f"{times.first * 1e6:.2f}",
        "q3_us": f"{times.third * 1e6:.2f}",
        "samples": times.samples,
        "dropped": times.dropped,
        "bf16_us": f"{base * 1e6:.2f}",
        "ratio": f"{base / times.median:.4f}",
        "weight_bytes": nbytes,
        "gb_per_s": f"{nbytes / times.median / 1e9:.2f}",
        "read_gb_per_s": "",
        "read_by": "",
        "error": "" if checked.error is None else f"{checked.error:.6f}",
        "error_to_float": "" if checked.error_to_float is None else f"{checked.error_to_float:.5f}",
    }


EMPTY = dict.fromkeys(
    ("median_us", "q1_us", "q3_us", "samples", "dropped", "bf16_us", "ratio", "weight_bytes", "gb_per_s",
     "read_gb_per_s", "read_by", "error", "error_to_float"), "",
)  # fmt: skip


def reason_of(error: BaseException) -> str:
    """What it says, in one line; its kind too where it is not ours."""
    text = " ".join(str(error).split())
    return (text if isinstance(error, NotHere) else f"{type(error).__name__}: {text}")[:160]


def is_current(row: dict[str, Any] | None, method: Method) -> bool:
    """Whether a row was measured with what is installed now, or says what another library still refuses."""
    versions = {"version": method.version(), "torch": torch.__version__}
    if row is None or any(row[key] != value for key, value in versions.items()):
        return False
    refused = str(row["remark"]).startswith(("refuses", "not installed")) and method.library != "qllm_hf"
    return bool(row["median_us"]) or refused


def shape_of(text: str) -> tuple[int, int]:
    n, k = text.split("x")
    return int(n), int(k)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", help="N x K with commas between, such as 4096x4096,576x1536; all if not given")
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--methods", default="", help="regular expression; a row per method whose name it finds")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--implementation", default="cpu", help="ours: a name of qllm_hf.ops.LINEAR")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    baseline, *others = ours.methods(given.implementation)
    table = [baseline, *others, *aten.methods(), *modules.methods(), *autoround.methods(), *ggml.methods()]
    asked = [method for method in table[1:] if re.search(given.methods, method.name)]
    rows = read_rows(NAME, KEY)
    shapes = [shape_of(text) for text in given.shapes.split(",")] if given.shapes else list(SHAPES)
    for n, k in shapes:
        todo: dict[int, list[Method]] = {}
        for tokens in map(int, given.tokens.split(",")):
            keys = {method.name: (str(n), str(k), str(tokens), method.name) for method in asked}
            missing = [m for m in asked if given.again or not is_current(rows.get(keys[m.name]), m)]
            if missing:
                todo[tokens] = missing
        if not todo:
            continue
        for row in rows_of_shape(n, k, todo, baseline, given.rounds):
            rows[key_of(row, KEY)] = row
            shown = ("median_us", "ratio", "gb_per_s", "error", "error_to_float", "dropped", "remark")
            print(*key_of(row, KEY), *(row[name] for name in shown), sep="  ", flush=True)
            write_rows(NAME, in_order(rows, [method.name for method in table]))
    print(RESULTS / f"{NAME}.csv")


def in_order(rows: dict[tuple[str, ...], dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """Rows by shape, tokens and method; those of methods that this run does not know come last."""

    def place(key: tuple[str, ...]) -> tuple[int, int, int, int]:
        n, k, tokens, name = key
        shape = (int(n), int(k))
        known = names.index(name) if name in names else len(names)
        return (SHAPES.index(shape) if shape in SHAPES else len(SHAPES), int(n) * int(k), int(tokens), known)

    return [rows[key] for key in sorted(rows, key=place)]


if __name__ == "__main__":
    main()
