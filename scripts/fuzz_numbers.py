"""Draw shapes, schemes, dtypes and bad numbers at random, and compare every implementation with float64.

    python scripts/fuzz_numbers.py --cases 7000 --seed 0
    TRITON_INTERPRET=1 python scripts/fuzz_numbers.py --cases 700       with the kernels for GPUs, in the interpreter

Zeros of both signs, denormals, equal and one-sided groups, one outlier, the ends of each dtype, NaN and infinities; as
weights, activations, keys and values. Results have to be within what rounding explains of the exact ones; a NaN or an
infinity has to show in all that it has part in, and nowhere else; and where several implementations promise the same
bits, they have to have them.

Prints a table of kinds and implementations: results compared, the worst distance in parts of what rounding explains and
of what could be added, and faults. For each fault it says how to repeat it. Ends with 1 if there was any.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]  # the references in float64 are those of the tests

from number_cases import KINDS, Outcome  # noqa: E402

from qllm_hf import native, on_gpu, ops, uniform  # noqa: E402
from qllm_hf.attention import native as attention_native  # noqa: E402


class Case(NamedTuple):
    kind: str
    seed: int
    number: int


class Found(NamedTuple):
    case: Case
    outcome: Outcome


def _scaled(run: Callable[..., object], factor: float) -> Callable[..., object]:
    """A function whose tensors are wrong by a factor."""

    def wrong(*args: object, **options: object) -> object:
        found = run(*args, **options)
        if isinstance(found, list):
            return [y * factor for y in found]
        return found * factor if isinstance(found, torch.Tensor) else found

    return wrong


def _hide(run: Callable[..., object]) -> Callable[..., object]:
    """A function that turns what is no number into numbers."""

    def wrong(*args: object, **options: object) -> object:
        found = run(*args, **options)
        return found.nan_to_num(0.0, 0.0, 0.0) if isinstance(found, torch.Tensor) else found

    return wrong


PLANTS: dict[str, tuple[object, str, Callable[[Callable[..., object]], Callable[..., object]]]] = {
    "products": (ops.cpu, "multiply", lambda run: _scaled(run, 1.02)),
    "hidden": (attention_native, "_call", _hide),
    "attention": (attention_native, "_call", lambda run: _scaled(run, 1.02)),
    "unpacking": (native, "decode", lambda run: _scaled(run, 1.02)),
    "rows": (native, "decode_rows", _hide),
    "codes": (uniform, "choose_codes", lambda run: _scaled(run, 0.9)),
}
"""Faults that --plant makes, for the campaign to find."""


def run_case(case: Case) -> list[Found]:
    """What came of one case, for each implementation."""
    source = random.Random(f"{case.seed} {case.kind} {case.number}")
    torch.manual_seed(source.randrange(2**31))
    try:
        return [Found(case, outcome) for outcome in KINDS[case.kind](source)]
    except Exception as error:
        return [Found(case, Outcome("any", 0, 0, f"{type(error).__name__}: {error}"))]


def campaign(cases: Iterable[Case], plant: str | None = None) -> list[Found]:
    """What came of all cases."""
    if plant is None:
        return [found for case in cases for found in run_case(case)]
    place, name, wrong = PLANTS[plant]
    right = getattr(place, name)
    setattr(place, name, wrong(right))
    try:
        return [found for case in cases for found in run_case(case)]
    finally:
        setattr(place, name, right)


def some_cases(count: int, seed: int, only: str | None = None) -> list[Case]:
    """The kinds in turn."""
    kinds = [only] if only else list(KINDS)
    return [Case(kinds[number % len(kinds)], seed, number) for number in range(count)]


def table(found: list[Found]) -> str:
    """Kinds and implementations, a line each."""
    lines = [
        f"{'kind':12}{'implementation':24}{'cases':>7}{'results':>9}{'of rounding':>13}{'relative':>11}{'faults':>8}"
    ]
    places = sorted({(item.case.kind, item.outcome.implementation) for item in found})
    for kind, name in places:
        here = [item for item in found if (item.case.kind, item.outcome.implementation) == (kind, name)]
        cases = len({item.case for item in here})
        share, relative = (max(getattr(item.outcome, part) for item in here) for part in ("share", "relative"))
        faults = sum(bool(item.outcome.fault) for item in here)
        lines.append(f"{kind:12}{name:24}{cases:>7}{len(here):>9}{share:>13.3g}{relative:>11.3g}{faults or '-':>8}")
    faults = sum(bool(item.outcome.fault) for item in found)
    lines.append(f"{'all':36}{len({item.case for item in found}):>7}{len(found):>9}{'':24}{faults or '-':>8}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare every implementation with float64, on bad numbers.")
    parser.add_argument("--cases", type=int, default=7000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(KINDS), help="cases of one kind")
    parser.add_argument("--case", type=int, help="of --only: this one alone, as a report names it")
    parser.add_argument("--plant", choices=list(PLANTS), help="make a fault: the campaign has to find it")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if os.environ.get("TRITON_INTERPRET") == "1":
        on_gpu.DEVICES.add("cpu")
    cases = some_cases(given.cases, given.seed, given.only)
    if given.case is not None:
        if given.only is None:
            parser.error("--case needs --only")
        cases = [Case(given.only, given.seed, given.case)]
    found = campaign(cases, given.plant)
    print(table(found))
    faults = [item for item in found if item.outcome.fault]
    for case, outcome in faults[:40]:
        print(f"\n--only {case.kind} --seed {case.seed} --case {case.number}")
        print(f"    {outcome.implementation}: {outcome.fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
