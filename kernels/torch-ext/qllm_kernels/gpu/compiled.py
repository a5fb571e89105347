"""Compile a kernel for a GPU that need not be there, and count what came out.

Instructions per element are counted in one of two ways:

- in the loop: the instructions of the longest loop that reads memory, times the threads of a program, over `elements`.
  What a program does once is not in it. Where ptxas unrolls the loop the number is too large, never too small.
- with `small`, marginal: by how many instructions a second compilation, with those constexprs and fewer elements, is
  shorter. For kernels without a loop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import INTERPRETED, sass

if TYPE_CHECKING:
    from .gate import Gate

LANES = {"cuda": 32, "hip": 64}


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
        tensor_core: names of the instructions of tensor cores, such as "HGMMA"; empty if there are none.
        expected: instructions that the gate expects.
        widest_load: bits that a thread reads from global memory at once; None where they are not counted.
    """

    gate: str
    target: str
    instructions: int
    in_loop: int
    per_element: float | None
    spills: int
    registers: int
    shared: int
    tensor_core: str
    expected: int
    widest_load: int | None


def compile_gate(gate: Gate, target: str) -> Compiled:
    """Compile a gate's kernel for a target, such as "cuda:90" or "hip:gfx942", and count.

    Raises:
        RuntimeError: Triton was imported for its interpreter, or the target does not take the kernel.
        ValueError: the gate lacks an argument of its function, or has one too many.
    """
    backend = target.partition(":")[0]
    if backend != "cuda" and "elementwise_inline_asm" in _build(gate, gate.constexprs, "cuda:90").asm["ttir"]:
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
        tensor_core=" ".join(sass.tensor_core(code.instructions)),
        expected=sass.matching(code.instructions, expected) if expected else 0,
        widest_load=sass.widest_load(code.instructions),
    )


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
        tensor_core="MFMA" if any(opcode.startswith("v_mfma") for opcode in opcodes) else "",
        expected=0,
        widest_load=None,
    )
