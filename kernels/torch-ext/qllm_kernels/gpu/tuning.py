"""Measure configs of the kernels on the GPU at hand, and keep the best ones for measured.py.

    python -m qllm_kernels.gpu.tuning --shapes 4096x4096,28672x8192 --bits 4,3,2 --groups 128 [--sizes 1,8,16,64]
    python -m qllm_kernels.gpu.tuning --operation integers --shapes 4096x4096 --bits 8,4 --groups -1 --sizes 512,2048
    python -m qllm_kernels.gpu.tuning --operation attention --shapes 32/8x128 --bits 4,2 --groups 64 --sizes 4096,32768

Shapes are outputs x inputs of a weight, or heads / key heads x head dim; sizes are tokens, or the length of the history
(`--batch` sequences). One field of a config after the other is set to each of its values, and to the best of them; a
second round starts from there. A config whose results differ from those of the default, or that the device has no room
for, is not taken. Times are those of CUDA graphs over more memory than the L2 cache holds. A shape takes about half a
minute, most of it for the compiler.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import measured, missing
from .measured import Measured
from .timing import copies, graph_times

if TYPE_CHECKING:
    from .tunable import Operation

ROUNDS = 2
DIFFERENCE = 2e-2
"""Of results with another config, relative to the largest: sums in another order, in 16-bit floats."""
Seconds = Callable[[Sequence[Callable[[], object]]], float]


def tune(operation: Operation, shape: Mapping[str, int], size: int, device: torch.device, seconds: Seconds) -> Measured:
    """The best config of an operation for a shape and a size, and its time.

    `seconds` is how long one of several calls takes that do the same on different operands.
    """
    default = operation.default(shape, size)
    first = operation.operands(shape, size, device)
    many = copies(first.nbytes, device) if device.type == "cuda" else 2
    operands = [first, *(operation.operands(shape, size, device) for _ in range(many - 1))]
    expected = first.run(default)

    def cost(config: Any) -> float:
        try:
            found = first.run(config)
        except operation.refusals:
            return math.inf
        return seconds([partial(each.run, config) for each in operands]) if _same(found, expected) else math.inf

    costs = descend(default, operation.values, cost)
    best = min(costs, key=costs.__getitem__)
    return Measured(dict(shape), size, best._asdict(), costs[best] * 1e6, costs[default] * 1e6)


def descend(start: Any, values: Mapping[str, Sequence[int]], cost: Callable[[Any], float]) -> dict[Any, float]:
    """Costs of all configs that were tried: one field after the other is set to the best of its values."""
    costs = {start: cost(start)}
    best = start
    for _ in range(ROUNDS):
        before = best
        for field, choices in values.items():
            for value in choices:
                config = best._replace(**{field: value})
                if config not in costs:
                    costs[config] = cost(config)
            best = min(costs, key=costs.__getitem__)
        if best == before:
            break
    return costs


def _same(found: Tensor, expected: Tensor) -> bool:
    largest = expected.float().abs().max().clamp(min=1e-12)
    return bool(((found.float() - expected.float()).abs().max() / largest) < DIFFERENCE)


def shapes_of(operation: Operation, texts: str, bits: str, groups: str, batch: int) -> list[dict[str, int]]:
    """All shapes that a command line asks for.

    Raises:
        ValueError: it has something else than numbers.
    """
    fields = operation.fields
    found = []
    for text, width, group in itertools.product(texts.split(","), bits.split(","), groups.split(",")):
        sizes = [int(number) for number in text.replace("/", "x").split("x")]
        numbers = [*sizes, int(width), int(group), batch][: len(fields)]
        if len(sizes) != len(fields) - (3 if "batch" in fields else 2):
            raise ValueError(f"shape {text!r}: takes {' x '.join(fields[: len(fields) - 2])}")
        found.append(dict(zip(fields, numbers, strict=True)))
    return found


def graph_seconds(calls: Sequence[Callable[[], object]]) -> float:
    """The median of replays."""
    return graph_times(calls, replays=10, enough=0.1).median


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m qllm_kernels.gpu.tuning", description="Find the best configs.")
    parser.add_argument("--operation", default="linear", choices=["linear", "integers", "attention"])
    parser.add_argument("--shapes", required=True, help="4096x4096,28672x8192; for attention 32/8x128")
    parser.add_argument("--bits", default="4")
    parser.add_argument("--groups", default="128")
    parser.add_argument("--sizes", default="1,8,16,64", help="tokens, or lengths of the history")
    parser.add_argument("--batch", type=int, default=1, help="sequences, for attention")
    parser.add_argument("--output", type=Path, default=measured.FOLDER, help="folder of the files")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"nothing to tune: {missing() or 'torch finds no GPU'}", file=sys.stderr)
        return 1
    from .tunable import OPERATIONS  # the kernels, which cannot be imported everywhere

    operation = OPERATIONS[given.operation]
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        shapes = shapes_of(operation, given.shapes, given.bits, given.groups, given.batch)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for shape, size in itertools.product(shapes, map(int, given.sizes.split(","))):
        best = tune(operation, shape, size, device, graph_seconds)
        path = measured.write(given.output, given.operation, measured.device_name(device), [best])
        print(f"{shape} {size}: {best.us:.2f} us, default {best.default_us:.2f} us, {best.config}", flush=True)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
