"""How long it takes to quantize and pack the weights of a model with 7 billion parameters on a CPU, ours and others'.

    python benchmarks/packing.py [--rounds 7] [--methods REGEX]

Llama-7B has 32 layers of four 4096x4096, two 11008x4096 and one 4096x11008 matrix: 6.5 billion weights in bfloat16,
13 GB. Each method packs every shape of one layer, in turns with all other methods and from memory that no cache holds;
`seconds` is the sum of the medians, times 32. Memory for the result is part of it, as it is of loading a model.

- A result is verified before it is timed: ours bit for bit against torch's arithmetic, others by what their codes mean,
  within what the bits allow.
- `gb_per_s` is bytes of bfloat16 read over time, `read_gb_per_s` what the machine can read in the same minutes.
- `reads_of_8_bits` is the time over that of reading as many weights at 8 bits: from bfloat16 it cannot fall below 2.

`round to nearest` is the same work as ours; HQQ looks for better zero points in up to 20 rounds. Methods that need more
than a second for the first matrix are timed once, on that one. Run it where torchao, optimum-quanto and hqq are there;
those that are not are rows that say so.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

os.environ["OMP_NUM_THREADS"] = "2"  # the one pool of threads that torch and all of these libraries share

import torch
from machine import machine, write_rows
from peers import modules
from peers.method import NotHere, need, quiet, version_of
from torch import Tensor

from qllm_hf import native
from qllm_hf.packed import PackedTensor, encode_reference
from qllm_hf.scheme import Spec

THREADS = 2
LAYERS = 32
SHAPES = {(4096, 4096): 4, (11008, 4096): 2, (4096, 11008): 1}
WEIGHTS = LAYERS * sum(count * rows * length for (rows, length), count in SHAPES.items())
CACHE_BYTES = 600_000_000
SLOW = 1.0  # seconds for a matrix
SPECS = (Spec(8, -1), Spec(8), Spec(4), Spec(4, 32), Spec(3), Spec(2, 64))
LIMIT = {8: 0.02, 4: 0.2, 2: 0.8}
"""Largest |w' - w| / |w| of a normal weight, by bits."""


@dataclass(frozen=True)
class Packing:
    """One way to pack a weight bfloat16 [O, I]. `check` raises where the result is wrong."""

    name: str
    package: str
    bits: int
    group_size: int
    run: Callable[[Tensor], Any]
    check: Callable[[Tensor, Any], None]


def same_as_torch(weight: Tensor, packed: PackedTensor) -> None:
    """Raises AssertionError where a bit differs, in the first and last rows (torch takes a while for all of them)."""
    for rows in (slice(0, 64), slice(-64, None)):
        wanted, found = encode_reference(weight[rows], packed.spec), packed.part(rows)
        for left, right in zip(found[:3], wanted[:3], strict=True):
            assert left is None or (left.dtype == right.dtype and left.equal(right)), packed.spec


def close(weight: Tensor, meant: Tensor, bits: int) -> None:
    """Raises AssertionError where the weight that the codes mean is too far from the original."""
    error = float((meant.float() - weight.float()).norm() / weight.float().norm())
    assert error < LIMIT[bits], f"{bits} bits: error {error:.3f}"


def ours(spec: Spec) -> Packing:
    """The C++ kernels, as models are packed."""
    if not native.is_there():
        raise NotHere(f"not built: {native.cpu.status().reason}")
    return Packing(
        "qllm_hf", "qllm-hf", spec.bits, spec.group_size, partial(PackedTensor.encode_weight, spec=spec), same_as_torch
    )


def in_torch(spec: Spec) -> Packing:
    """The same in torch, some rows at a time."""

    def run(weight: Tensor) -> PackedTensor:
        step = max(1, 2**19 // weight.shape[1])
        pieces = [encode_reference(weight[start : start + step], spec) for start in range(0, len(weight), step)]
        words, scale, zero_point = (torch.cat(parts) for parts in list(zip(*pieces, strict=True))[:3])
        return PackedTensor(words, scale, zero_point, spec, weight.shape[1])

    return Packing("qllm_hf in torch", "qllm-hf", spec.bits, spec.group_size, run, same_as_torch)


def quanto(bits: int) -> Packing:
    """quanto's round to nearest: per channel at 8 bits, groups of 128 below."""
    library = need("optimum.quanto")
    kind = library.qtypes[f"qint{bits}"]

    def run(weight: Tensor) -> Any:
        if bits == 8:
            scale = library.AbsmaxOptimizer()(weight, qtype=kind, axis=0)
            return library.quantize_weight(weight, qtype=kind, axis=0, scale=scale)
        scale, shift = library.MaxOptimizer()(weight, qtype=kind, axis=0, group_size=128)
        return library.quantize_weight(weight, qtype=kind, axis=0, scale=scale, shift=shift, group_size=128)

    group_size = -1 if bits == 8 else 128
    return Packing("quanto", "optimum-quanto", bits, group_size, run, lambda w, q: close(w, q.dequantize(), bits))


def hqq(bits: int, rounds: bool) -> Packing:
    """HQQ's quantizer in groups of 128, with or without its search."""
    quantizer = need("hqq.core.quantize").Quantizer

    def run(weight: Tensor) -> Any:
        return quantizer.quantize(
            weight, nbits=bits, group_size=128, axis=1, optimize=rounds, device="cpu", compute_dtype=torch.bfloat16
        )

    name = "HQQ" if rounds else "HQQ, round to nearest"
    return Packing(name, "hqq", bits, 128, run, lambda w, q: close(w, quantizer.dequantize(*q), bits))


def torchao(bits: int) -> Packing:
    """torchao's layer: int8 per channel, int4 in groups of 128 for its CPU kernel."""
    settings = {
        8: ("torchao.quantization", "Int8WeightOnlyConfig", {}),
        4: ("torchao.prototype.int4_opaque_tensor", "Int4WeightOnlyOpaqueTensorConfig", {"group_size": 128}),
    }
    module, config, options = settings[bits]

    def run(weight: Tensor) -> Any:
        return modules.torchao(weight, module, config, **options)

    def check(weight: Tensor, layer: Any) -> None:
        x = torch.eye(weight.shape[1], dtype=torch.bfloat16)[:256]  # its product with this is a part of the weight
        close(weight[:, :256], layer(x).t(), bits)

    return Packing("torchao", "torchao", bits, -1 if bits == 8 else 128, run, check)


FACTORIES: dict[str, Callable[[], Packing]] = {
    **{f"qllm_hf {spec.bits} bits g{spec.group_size}": partial(ours, spec) for spec in SPECS},
    **{f"qllm_hf in torch {spec.bits} bits g{spec.group_size}": partial(in_torch, spec) for spec in SPECS[1:3]},
    **{f"quanto {bits} bits": partial(quanto, bits) for bits in (8, 4, 2)},
    **{f"torchao {bits} bits": partial(torchao, bits) for bits in (8, 4)},
    "HQQ 4 bits, round to nearest": partial(hqq, 4, False),
    "HQQ 4 bits": partial(hqq, 4, True),
}


def weights_of(shape: tuple[int, int]) -> list[Tensor]:
    """Different weights of a shape, together more than the caches hold."""
    count = -(-CACHE_BYTES // (2 * shape[0] * shape[1]))
    one = (torch.randn(shape) * 0.02).bfloat16()
    return [one, *(one.roll(index, 0) for index in range(1, count))]


def made(pattern: str) -> tuple[list[Packing], list[dict[str, Any]]]:
    """The methods that are here, and a row for each that is not."""
    found, missing = [], []
    for name, factory in FACTORIES.items():
        if not re.search(pattern, name):
            continue
        try:
            with quiet():
                found.append(factory())
        except NotHere as error:
            missing.append({"method": name, "note": str(error)})
    return found, missing


Times = dict[tuple[int, int], list[float]]


def measure(methods: list[Packing], rounds: int, notes: dict[Packing, str]) -> dict[Packing, Times]:
    """Seconds of each method for a matrix of each shape. `notes` gets the reasons of those that failed the check."""
    times: dict[Packing, Times] = {method: defaultdict(list) for method in methods}
    for shape in SHAPES:
        weights = weights_of(shape)
        for method in [method for method in times if not _is_slow(times[method])]:
            try:
                with quiet():
                    start = time.perf_counter()
                    packed = method.run(weights[0])
                    seconds = time.perf_counter() - start
                    method.check(weights[0], packed)
            except Exception as error:  # whatever a library raises; the row says it
                notes[method] = f"{type(error).__name__}: {error}"[:200]
                del times[method]
                continue
            if seconds > SLOW:
                times[method][shape] = [seconds]
        fast = [method for method in times if not _is_slow(times[method])]
        for turn, method in enumerate(method for _ in range(rounds) for method in fast):
            start = time.perf_counter()
            method.run(weights[turn % len(weights)])
            times[method][shape].append(time.perf_counter() - start)
    return times


def _is_slow(found: Times) -> bool:
    return any(statistics.median(each) > SLOW for each in found.values())


def total(found: Times, of: Callable[[list[float]], float]) -> float:
    """Seconds for the whole model; shapes that were not timed take as long for a weight as those that were."""
    timed = sum(SHAPES[shape] * shape[0] * shape[1] for shape in found)
    return sum(SHAPES[shape] * of(each) for shape, each in found.items()) * WEIGHTS / timed


def bandwidth() -> float:
    """Bytes per second that the threads read from memory."""
    data = torch.ones(2**27, dtype=torch.int64)
    library = native.cpu.library()
    return max(library.read_bandwidth(data.data_ptr(), data.nbytes, THREADS) for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--methods", default="", metavar="REGEX")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    methods, missing = made(arguments.methods)
    notes: dict[Packing, str] = {}
    before = bandwidth()
    with torch.inference_mode():
        times = measure(methods, arguments.rounds, notes)
    reads = max(before, bandwidth())
    rows: list[dict[str, Any]] = []
    for method in methods:
        row: dict[str, Any] = {
            "method": method.name, "bits": method.bits, "group_size": method.group_size,
            "version": version_of(method.package), "note": notes.get(method, ""),
        }  # fmt: skip
        if method in times:
            seconds = total(times[method], statistics.median)
            row |= {
                "seconds": round(seconds, 3), "best_seconds": round(total(times[method], min), 3),
                "gb_per_s": round(2 * WEIGHTS / seconds / 1e9, 3), "read_gb_per_s": round(reads / 1e9, 2),
                "reads_of_8_bits": round(seconds * reads / WEIGHTS, 2),
                "rounds": min(len(each) for each in times[method].values()),
            }  # fmt: skip
            speed = f"{row['gb_per_s']} GB/s of {row['read_gb_per_s']}"
            print(f"{method.name} {method.bits} bits g{method.group_size}: {row['seconds']} s, {speed}")
        else:
            print(f"{method.name} {method.bits} bits: {row['note']}")
        rows.append(row)
    for row in missing:
        print(f"{row['method']}: {row['note']}")
    names = ("method", "bits", "group_size", "version", "seconds", "best_seconds", "gb_per_s", "read_gb_per_s",
             "reads_of_8_bits", "rounds", "note")  # fmt: skip
    with_machine = [{**dict.fromkeys(names, ""), **row, **machine()} for row in (*rows, *missing)]
    print(write_rows("packing", with_machine))


if __name__ == "__main__":
    main()
