"""Pieces of PTX, as inline assembly has them, run on the CPU: numpy arrays of uint32 are registers of many threads."""

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Register = NDArray[np.uint32]


def lop3(a: Register, b: Register, c: Register, table: Register) -> Register:
    """Any function of three bits: bit 4 a + 2 b + c of its truth table, which is the same in all threads."""
    result = np.zeros_like(a)
    for row in range(8):
        if table[0] >> row & 1:
            here = [x if row >> place & 1 else ~x for x, place in ((a, 2), (b, 1), (c, 0))]
            result |= here[0] & here[1] & here[2]
    return result


def prmt(a: Register, b: Register, selector: Register) -> Register:
    """Four of the eight bytes of two registers, without the sign that bit 3 of a selector stands for."""
    source = np.stack([x >> (8 * byte) & 0xFF for x in (a, b) for byte in range(4)])
    picked = [source[selector >> (4 * byte) & 7, np.arange(len(a))] << (8 * byte) for byte in range(4)]
    return picked[0] | picked[1] | picked[2] | picked[3]


def fma_bf16x2(a: Register, b: Register, c: Register) -> Register:
    """a b + c for the bfloat16 in each half, which has to be exact."""
    halves = []
    for at in (0, 16):
        x, y, z = (((each >> at & 0xFFFF) << 16).view(np.float32) for each in (a, b, c))
        bits = (x * y + z).view(np.uint32)
        assert not (bits & 0xFFFF).any(), "more than a bfloat16 holds"
        halves.append(bits >> 16)
    return halves[0] | (halves[1] << 16)


INSTRUCTIONS: dict[str, Callable[..., Register]] = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "add.u32": lambda a, b: a + b,
    "shr.b32": lambda a, by: np.where(by > 31, 0, a >> np.minimum(by, 31)),
    "shl.b32": lambda a, by: np.where(by > 31, 0, a << np.minimum(by, 31)),
    "lop3.b32": lop3,
    "prmt.b32": prmt,
    "fma.rn.bf16x2": fma_bf16x2,
}
REGISTERS_ONLY = {"fma.rn.bf16x2"}


def run(assembly: str, *inputs: Register, outputs: int = 1) -> list[Register]:
    """What assembly leaves in $0 and so on for the registers after them.

    Raises:
        ValueError: it has what ptxas refuses: a register that is not declared, or a number where none may be.
    """
    registers = {f"${outputs + number}": value for number, value in enumerate(inputs)}
    declared = {f"${number}" for number in range(outputs)}
    for statement in filter(None, (part.strip() for part in re.sub(r"[{}]", "", assembly).split(";"))):
        operation, operands = statement.split(None, 1)
        names = [name.strip() for name in operands.removeprefix(".b32").split(",")]
        if operation == ".reg":
            declared.update(names)
            continue
        target, *sources = names
        if target not in declared:
            raise ValueError(f"{target} is not declared: {statement}")
        if operation in REGISTERS_ONLY and not registers.keys() >= set(sources):
            raise ValueError(f"takes registers only: {statement}")
        values = [registers[name] if name in registers else np.full_like(inputs[0], int(name, 0)) for name in sources]
        registers[target] = INSTRUCTIONS[operation](*values).astype(np.uint32)
    return [registers[f"${number}"] for number in range(outputs)]
