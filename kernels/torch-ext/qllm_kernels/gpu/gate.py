"""What the compiler has to make of every kernel, on a machine without a GPU: instructions, spills, tensor cores, loads.

    python -m qllm_kernels.gpu.gate [--targets cuda:90,cuda:80] [--kernels REGEX] [--workers 2] [--csv FILE] [--json]

A file of kernels ends with a table

    GATES = (
        Gate(
            "few tokens W4 g128",                         # unique
            _few_tokens,                                  # the @triton.jit function
            {"x": "*bf16", "words": "*i16", "n": "i32"},  # all arguments that are no constexpr
            {"BITS": 4, "BLOCK_N": 64, "BLOCK_K": 128},   # all constexprs; None for a pointer that is not there
            elements=64 * 128,                            # codes that a program takes in one pass of its loop
            budget=3.9,                                   # instructions per code
            expects="HGMMA",                              # of Hopper; HMMA stands for it on older GPUs
        ),
    )

Instructions per element are what decides: a GPU that reads 4.3 TB/s has time for 7.8 thread instructions per code of
8 bits, 3.9 of 4, 2.9 of 3 and 1.95 of 2 (132 processors with 128 lanes at 1.98 GHz). compiled.py says how they are
counted. A kernel that is known to take more is in excess.py, with how much and why.

Pointers are taken to be divisible by 16, as torch allocates them, and so are the integers in `divisible`.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .excess import EXCESS

if TYPE_CHECKING:
    from .compiled import Compiled

FILES = ("weights", "weights_many", "experts", "experts_integers", "decode", "integers", "encode", "attention")
TARGETS = ("cuda:90", "cuda:80", "cuda:89")
OPTIONS: Mapping[str, Any] = {"num_warps": 4, "num_stages": 3}
_BEFORE_HOPPER = {"HGMMA": "HMMA", "IGMMA": "IMMA"}  # what multiplies where four warps cannot do so together


class Gate(NamedTuple):
    """A kernel to compile, and what has to come out.

    Attributes:
        name: unique in all tables.
        function: the `@triton.jit` function.
        signature: type of each argument that is no constexpr: "*bf16", "*i16", "*u8", "i32", "fp32".
        constexprs: value of each of the others.
        elements: codes (or numbers to pack) that one program takes in one pass of its loop, or in all if it has no
            loop; None if instructions per element mean nothing for it.
        options: of the compiler: num_warps, num_stages.
        expects: regular expression of an instruction of NVIDIA that must be there (the start of its opcode), as it is
            called on Hopper; None if there is none.
        budget: instructions per element at most, on every target of NVIDIA or by target.
        wide: whether loads of 128 bits must be there.
        small: constexprs that differ in a smaller tile, and its elements: count marginally.
        divisible: integer arguments that are multiples of 16.
        targets: those of TARGETS that it is meant for; it is compiled for those of EXCESS too. Others, such as
            "hip:gfx942", are tried where they are asked for: kernels with assembly for NVIDIA do not compile for them.
    """

    name: str
    function: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    elements: int | None = None
    options: Mapping[str, Any] = OPTIONS
    expects: str | None = None
    budget: float | Mapping[str, float] | None = None
    wide: bool = True
    small: tuple[Mapping[str, Any], int] | None = None
    divisible: tuple[str, ...] = ()
    targets: tuple[str, ...] = TARGETS

    def expected_on(self, target: str) -> str | None:
        """The instruction that must be there on a target."""
        backend, _, architecture = target.partition(":")
        if backend != "cuda" or self.expects is None:
            return None
        old = architecture.isdigit() and int(architecture) < 90
        return _BEFORE_HOPPER.get(self.expects, self.expects) if old else self.expects

    def budget_on(self, target: str) -> float | None:
        """Instructions per element at most, on a target."""
        return self.budget.get(target) if isinstance(self.budget, Mapping) else self.budget

    def compiles_for(self, target: str) -> bool:
        """Whether a target is one of its own, or none of TARGETS."""
        return target in self.targets or (self.name, target) in EXCESS or target not in TARGETS


def gates(pattern: str = "") -> list[Gate]:
    """Those of all kernels whose name the regular expression finds.

    Raises:
        ValueError: two have the same name.
    """
    tables = [importlib.import_module(f".{file}", __package__).GATES for file in FILES]
    found = [gate for table in tables for gate in table]
    names = [gate.name for gate in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"gates with the same name: {', '.join(twice)}")
    return [gate for gate in found if re.search(pattern, gate.name)]


def excesses(gate: Gate, compiled: Compiled) -> list[str]:
    """What a kernel takes more of than it should, known or not, in words; empty if nothing."""
    budget, found = gate.budget_on(compiled.target), []
    if compiled.spills:
        found.append(f"{compiled.spills} accesses to spilled registers")
    if budget is not None and compiled.per_element is not None and compiled.per_element > budget:
        found.append(f"{compiled.per_element:.2f} instructions per element, allowed are {budget:.2f}")
    return found


def faults(gate: Gate, compiled: Compiled) -> list[str]:
    """What is not as the gate wants it, in words; empty if all is, but for what EXCESS knows."""
    known, found = EXCESS.get((gate.name, compiled.target)), excesses(gate, compiled)
    if known is not None and not found:
        return ["takes no more than it should: EXCESS is out of date"]
    if known is not None and known.covers(compiled, gate.budget_on(compiled.target)):
        found = []
    expected = gate.expected_on(compiled.target)
    if expected and not compiled.expected:
        found.append(f"no {expected}")
    if compiled.target.startswith("hip:"):
        return found
    if gate.wide and (compiled.widest_load or 0) < 128:
        found.append("no load of 128 bits")
    if gate.budget_on(compiled.target) is not None and compiled.per_element is None:
        found.append("no loop to count instructions in: give `small`")
    return found


if __name__ == "__main__":
    from .gate_run import main

    sys.exit(main())
