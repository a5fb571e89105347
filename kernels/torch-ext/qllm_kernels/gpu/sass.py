"""The machine code of a compiled kernel: its instructions, its loops and what they read.

Read with `cuobjdump`, which comes with Triton and needs no GPU.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

_LINE = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
_BRANCH = re.compile(r"0x([0-9a-f]+)\s*$")
_READS = re.compile(r"^(LDG|LDGSTS|UTMALDG|UBLKCP)\b")
_TILES = re.compile(r"^(UTMALDG|UBLKCP)\b")
_WIDTH = re.compile(r"\.[US]?(8|16|64|128)(?=\.|$)")
_TENSOR_CORE = re.compile(r"^(HMMA|IMMA|HGMMA|IGMMA|QGMMA)\b")
_SPILLS = re.compile(r"^(LDL|STL)\b")
_REGISTERS = re.compile(r"\bREG:(\d+)")


class Instruction(NamedTuple):
    """One instruction: where it lies, what it does, and where it jumps to."""

    address: int
    opcode: str
    operands: str
    jumps_to: int | None


class Code(NamedTuple):
    """Instructions in their order, without padding, and registers per thread."""

    instructions: tuple[Instruction, ...]
    registers: int


def disassemble(cubin: bytes) -> Code:
    """The code of a cubin with one function.

    Raises:
        subprocess.CalledProcessError: cuobjdump cannot read it.
    """
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", str(file)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers = _REGISTERS.search(printed)
    return Code(parse(printed), int(registers[1]) if registers else 0)


def parse(text: str) -> tuple[Instruction, ...]:
    """The instructions of what `cuobjdump -sass` prints, NOPs left out."""
    found = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match and match[2] != "NOP":
            goal = _BRANCH.search(match[3]) if match[2].startswith("BRA") else None
            found.append(Instruction(int(match[1], 16), match[2], match[3].strip(), int(goal[1], 16) if goal else None))
    return tuple(found)


def hot_loop(code: Sequence[Instruction]) -> tuple[Instruction, ...] | None:
    """The longest of the loops that read global memory and hold no other such loop; None without a loop.

    A loop is what lies between a jump back and its goal. Where ptxas unrolled one, it is as long as all its copies.
    """
    spans = [(each.jumps_to, each.address) for each in code if each.jumps_to is not None]
    bodies = [tuple(each for each in code if first <= each.address <= last) for first, last in spans if first < last]
    reading = [body for body in bodies if any(_READS.match(each.opcode) for each in body)]
    inner = [body for body in reading if not any(_inside(other, body) for other in reading)]
    return max(inner, key=len, default=None)


def _inside(part: Sequence[Instruction], whole: Sequence[Instruction]) -> bool:
    return len(part) < len(whole) and whole[0].address <= part[0].address and part[-1].address <= whole[-1].address


def spills(code: Iterable[Instruction]) -> int:
    """Accesses to a thread's own memory: registers that ran out, or arrays that got none."""
    return sum(bool(_SPILLS.match(each.opcode)) for each in code)


def widest_load(code: Iterable[Instruction]) -> int:
    """Bits that a thread loads from global memory at once, at most: 8 to 128, and 128 for whole tiles; 0 for none."""
    return max((_width(each.opcode) for each in code if _READS.match(each.opcode)), default=0)


def _width(opcode: str) -> int:
    if _TILES.match(opcode):
        return 128
    named = _WIDTH.search(opcode)
    return int(named[1]) if named else 32


def tensor_core(code: Iterable[Instruction]) -> list[str]:
    """Names of the instructions of tensor cores, sorted."""
    return sorted({match[1] for each in code if (match := _TENSOR_CORE.match(each.opcode))})


def matching(code: Iterable[Instruction], pattern: str) -> int:
    """Instructions whose opcode begins as the regular expression says."""
    return sum(bool(re.match(pattern, each.opcode)) for each in code)
