"""Pieces of PTX, as inline assembly has them, run on the CPU: numpy arrays of uint32 are registers of many threads."""

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Register = NDArray[np.uint32]


def lop3(a: Register, b: Register, c: Register, table: Register) -> Register:
    """Any function of three bits: bit 4 a + 2 b + c of its truth table."""
    place = ((a[:, None] >> _BITS & 1) << 2) | ((b[:, None] >> _BITS & 1) << 1) | (c[:, None] >> _BITS & 1)
    return ((table[:, None] >> place & 1) << _BITS).sum(1, dtype=np.uint32)


def prmt(a: Register, b: Register, selector: Register) -> Register:
    """Four of the eight bytes of two registers, without the sign that bit 3 of a selector stands for."""
    source = np.stack([x >> (8 * byte) & 0xFF for x in (a, b) for byte in range(4)])
    picked = [source[selector >> (4 * byte) & 7, np.arange(len(a))] << (8 * byte) for byte in range(4)]
    return picked[0] | picked[1] | picked[2] | picked[3]


_BITS = np.arange(32, dtype=np.uint32)
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
}


def run(assembly: str, *inputs: Register, outputs: int = 1) -> list[Register]:
    """What assembly leaves in $0 and so on for the registers after them."""
    registers = {f"${outputs + number}": value for number, value in enumerate(inputs)}
    for statement in filter(None, (part.strip() for part in re.sub(r"[{}]", "", assembly).split(";"))):
        operation, operands = statement.split(None, 1)
        if operation != ".reg":
            target, *sources = (operand.strip() for operand in operands.split(","))
            values = [
                registers[name] if name in registers else np.full_like(inputs[0], int(name, 0)) for name in sources
            ]
            registers[target] = INSTRUCTIONS[operation](*values).astype(np.uint32)
    return [registers[f"${number}"] for number in range(outputs)]
