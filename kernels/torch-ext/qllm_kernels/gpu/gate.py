"""What the compiler makes of every kernel, on a machine without a GPU: instructions, spills, tensor cores, loads.

    python -m qllm_kernels.gpu.gate [--targets cuda:90,cuda:80] [--kernels REGEX] [--csv FILE] [--json]

A file of kernels ends with a table

    GATES = (
        Gate(
            "few tokens W4 g128",                         # unique
            _few_tokens,                                  # the @triton.jit function
            {"x": "*bf16", "words": "*i16", "n": "i32"},  # all arguments that are no constexpr
            {"BITS": 4, "BLOCK_N": 64, "BLOCK_K": 128},   # all constexprs; None for a pointer that is not there
            elements=64 * 128,                            # codes that a program takes in one pass of its loop
            budget=3.9,                                   # instructions per code
            expects={"cuda:90": "HGMMA", "cuda:80": "HMMA"},
        ),
    )

Instructions per element are what decides: a GPU that reads 4.3 TB/s has time for 7.8 thread instructions per code of
8 bits, 3.9 of 4, 2.9 of 3 and 1.95 of 2 (132 processors with 128 lanes at 1.98 GHz). They are counted in one of two
ways:

- in the loop: the instructions of the longest loop that reads memory, times the threads of a program, over `elements`.
  What a program does once is not in it. Where ptxas unrolls the loop the number is too large, never too small.
- with `small`, marginal: by how many instructions a second compilation, with those constexprs and fewer elements, is
  shorter. For kernels without a loop.

Pointers are taken to be divisible by 16, as torch allocates them, and so are the integers in `divisible`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import INTERPRETED, sass

FILES = ("weights", "decode", "integers", "encode", "attention")
TARGETS = ("cuda:90", "cuda:80", "cuda:89")
OPTIONS: Mapping[str, Any] = {"num_warps": 4, "num_stages": 3}
LANES = {"cuda": 32, "hip": 64}


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
        expects: regular expression of an instruction that must be there (the start of its opcode), on all targets
            of NVIDIA or by target; None if there is none.
        budget: instructions per element at most, on every target of NVIDIA.
        wide: whether loads of 128 bits must be there.
        small: constexprs that differ in a smaller tile, and its elements: count marginally.
        divisible: integer arguments that are multiples of 16.
        targets: those of TARGETS that it is meant for. Others, such as "hip:gfx942", are tried where they are asked
            for: kernels with assembly for NVIDIA do not compile for them.
    """

    name: str
    function: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    elements: int | None = None
    options: Mapping[str, Any] = OPTIONS
    expects: str | Mapping[str, str] | None = None
    budget: float | None = None
    wide: bool = True
    small: tuple[Mapping[str, Any], int] | None = None
    divisible: tuple[str, ...] = ()
    targets: tuple[str, ...] = TARGETS

    def expected_on(self, target: str) -> str | None:
        """The instruction that must be there on a target."""
        if isinstance(self.expects, Mapping):
            return self.expects.get(target)
        return self.expects if target.startswith("cuda:") else None


@dataclass(frozen=True)
class Compiled:
    """What came out for one gate and target. Counts are of instructions in the code, not of executed ones.

    Attributes:
        instructions: of the whole kernel.
        in_loop: of its loop, 0 without one.
        per_element: thread instructions per element; None where they are not counted.
        spills: loads and stores of spilled registers.
        registers: per thread.
        shared: bytes of shared memory per program.
        tensor_core: instructions of the tensor cores.
        expected: instructions that the gate expects.
        wide_loads: loads of 128 bits; None where they are not counted.
    """

    gate: str
    target: str
    instructions: int
    in_loop: int
    per_element: float | None
    spills: int
    registers: int
    shared: int
    tensor_core: int
    expected: int
    wide_loads: int | None


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


def compile_gate(gate: Gate, target: str) -> Compiled:
    """Compile a gate's kernel for a target, such as "cuda:90" or "hip:gfx942", and count.

    Raises:
        RuntimeError: Triton was imported for its interpreter, or the target does not take the kernel.
        ValueError: the gate lacks an argument of its function, or has one too many.
    """
    backend = target.partition(":")[0]
    if backend != "cuda" and "elementwise_inline_asm" in _build(gate, gate.constexprs, TARGETS[0]).asm["ttir"]:
        raise RuntimeError("it has assembly for NVIDIA")  # which ends the process, where another compiler meets it
    built = _build(gate, gate.constexprs, target)
    if backend == "hip":
        return _compiled_for_amd(gate, target, built)
    code = sass.disassemble(built.asm["cubin"])
    body = sass.hot_loop(code.instructions) or ()
    threads = LANES[backend] * gate.options.get("num_warps", 4)
    per_element = None
    if gate.elements and gate.small:
        constexprs, elements = gate.small
        small = sass.disassemble(_build(gate, {**gate.constexprs, **constexprs}, target).asm["cubin"])
        fewer = len(code.instructions) - len(small.instructions)
        per_element = fewer * threads / (gate.elements - elements)
    elif gate.elements and body:
        per_element = len(body) * threads / gate.elements
    expected = gate.expected_on(target)
    return Compiled(
        gate=gate.name,
        target=target,
        instructions=len(code.instructions),
        in_loop=len(body),
        per_element=per_element,
        spills=sass.spills(code.instructions),
        registers=code.registers,
        shared=built.metadata.shared,
        tensor_core=sass.matching(code.instructions, r"(HMMA|IMMA|HGMMA|IGMMA|QGMMA)\b"),
        expected=sass.matching(code.instructions, expected) if expected else 0,
        wide_loads=sass.wide_loads(code.instructions),
    )


def faults(gate: Gate, compiled: Compiled) -> list[str]:
    """What is not as the gate wants it, in words; empty if all is."""
    expected, found = gate.expected_on(compiled.target), []
    if compiled.spills:
        found.append(f"{compiled.spills} accesses to spilled registers")
    if expected and not compiled.expected:
        found.append(f"no {expected}")
    if compiled.target.startswith("hip:"):
        return found
    if gate.wide and not compiled.wide_loads:
        found.append("no load of 128 bits")
    if gate.budget is not None and compiled.per_element is None:
        found.append("no loop to count instructions in: give `small`")
    elif gate.budget is not None and compiled.per_element is not None and compiled.per_element > gate.budget:
        found.append(f"{compiled.per_element:.2f} instructions per element, allowed are {gate.budget:.2f}")
    return found


def _build(gate: Gate, constexprs: Mapping[str, Any], target: str) -> Any:
    """The kernel that Triton compiles: `asm` and `metadata`."""
    if INTERPRETED:
        raise RuntimeError("nothing can be compiled where TRITON_INTERPRET=1 was set when Triton was imported")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = gate.function.arg_names
    known = {**dict.fromkeys(constexprs, "constexpr"), **gate.signature}
    if set(known) != set(names) or set(constexprs) & set(gate.signature):
        missing, extra = sorted(set(names) - set(known)), sorted(set(known) - set(names))
        raise ValueError(f"gate {gate.name!r}: arguments missing: {missing}, unknown: {extra}")
    signature = {name: known[name] for name in names}
    aligned = [place for place, name in enumerate(names) if signature[name].startswith("*") or name in gate.divisible]
    source = ASTSource(
        gate.function,
        signature=signature,
        constexprs=dict(constexprs),
        attrs={(place,): [["tt.divisibility", 16]] for place in aligned},
    )
    backend, _, architecture = target.partition(":")
    arch: int | str = int(architecture) if architecture.isdigit() else architecture
    return triton.compile(source, target=GPUTarget(backend, arch, LANES[backend]), options=dict(gate.options))


def _compiled_for_amd(gate: Gate, target: str, built: Any) -> Compiled:
    """From the text of the assembly: there is no disassembler for NVIDIA's counts, so nothing per element."""
    text: str = built.asm["amdgcn"]

    def number(field: str) -> int:
        match = re.search(rf"\.{field}:\s*(\d+)", text)
        return int(match[1]) if match else 0

    expected = gate.expected_on(target)
    opcodes = re.findall(r"^\t([vs]_\w+|ds_\w+|global_\w+|buffer_\w+|scratch_\w+|flat_\w+)", text, re.MULTILINE)
    return Compiled(
        gate=gate.name,
        target=target,
        instructions=len(opcodes),
        in_loop=0,
        per_element=None,
        spills=number("vgpr_spill_count") + number("sgpr_spill_count"),
        registers=number("vgpr_count"),
        shared=built.metadata.shared,
        tensor_core=sum(opcode.startswith("v_mfma") for opcode in opcodes),
        expected=sum(bool(expected and re.match(expected, opcode)) for opcode in opcodes),
        wide_loads=None,
    )


def _write_csv(path: Path, rows: Iterable[Compiled]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Compiled)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0 if every kernel is as its gate wants it."""
    parser = argparse.ArgumentParser(prog="python -m qllm_kernels.gpu.gate", description=__doc__.split("\n")[0])
    parser.add_argument("--targets", default=",".join(TARGETS), help="such as cuda:90,hip:gfx942")
    parser.add_argument("--kernels", default="", help="regular expression; gates whose name it finds")
    parser.add_argument("--csv", type=Path, help="file to write the table to")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead of the table")
    given = parser.parse_args(arguments)
    if INTERPRETED:
        print("nothing can be compiled with TRITON_INTERPRET=1", file=sys.stderr)
        return 1
    rows, failed = [], False
    for target in given.targets.split(","):
        for gate in gates(given.kernels):
            if target in TARGETS and target not in gate.targets:
                continue
            try:
                row = compile_gate(gate, target)
                found = faults(gate, row)
                rows.append(row)
            except Exception as error:  # of any kind: the next kernel may be fine
                row, found = None, [f"does not compile: {_innermost(error)}"]
            failed = failed or bool(found)
            if given.json:
                counts = {} if row is None else dataclasses.asdict(row)
                print(json.dumps({"gate": gate.name, "target": target, **counts, "faults": found}), flush=True)
            else:
                print(f"{target:8s} {gate.name:40s} {_counts(row, gate)}  {'; '.join(found) or 'ok'}", flush=True)
    if given.csv:
        _write_csv(given.csv, rows)
    return int(failed)


def _counts(row: Compiled | None, gate: Gate) -> str:
    if row is None:
        return ""
    each = "    -" if row.per_element is None else f"{row.per_element:5.2f}"
    allowed = "" if gate.budget is None else f" of {gate.budget:.2f}"
    return f"{each}{allowed:8s} {row.registers:3d} registers {row.shared:6d} B shared {row.tensor_core:4d} tensor core"


def _innermost(error: BaseException) -> str:
    """The last line of what the first error of a chain says: Triton wraps an error once for each call."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else 'no message'}"[:200]


if __name__ == "__main__":
    sys.exit(main())
