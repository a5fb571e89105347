"""Runs kernels on memory that lies against pages that trap: what reads or writes beside it kills this program.

    python tests/kernels/guarded_memory.py LEVEL [EXTRA_TOKENS]

Other than a sanitizer, this sees every instruction of the library as it is, masked loads and inline assembly too.
EXTRA_TOKENS lets the kernels believe in so many tokens more than there are.
"""

import ctypes
import itertools
import mmap
import sys

import torch

from qllm_hf.ops import cpu as implementation
from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import ALLOWED_BITS, PER_ROW, Spec
from qllm_kernels import cpu

PAGE, NO_ACCESS = mmap.PAGESIZE, 0
SHAPES = ((5, 300), (1, 1), (9, 129), (34, 64), (4, 2176), (3, 40))
GROUP_SIZES = (32, 64, 128, PER_ROW, 0)

libc = ctypes.CDLL(None)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
areas: list[mmap.mmap] = []  # must outlive the tensors in them


def guarded(tensor: torch.Tensor, at_start: bool) -> torch.Tensor:
    """A copy that begins right after a page that traps, or ends right before one."""
    size = tensor.numel() * tensor.element_size()
    pages = -(-size // PAGE)
    area = mmap.mmap(-1, (pages + 2) * PAGE)
    areas.append(area)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for page in (address, address + (pages + 1) * PAGE):
        if libc.mprotect(page, PAGE, NO_ACCESS):
            raise OSError("mprotect failed")
    offset = PAGE if at_start else (pages + 1) * PAGE - size
    copy = torch.frombuffer(area, dtype=tensor.dtype, count=tensor.numel(), offset=offset).view(tensor.shape)
    return copy.copy_(tensor)


def main(levels: str, extra_tokens: int = 0) -> None:
    """Tries levels of the library, given with commas between, one after another."""
    for level in levels.split(","):
        print(f"{level}: {compare(level, extra_tokens)} products touched nothing beside their memory")


def compare(level: str, extra_tokens: int) -> int:
    """Bits x groups x shapes x dtypes x A16 and A8 x tokens, every tensor at the start or at the end of its pages."""
    library = cpu.library()
    library.set_level(level)
    compared = 0
    for bits, group_size, (rows, length) in itertools.product(ALLOWED_BITS, GROUP_SIZES, SHAPES):
        for dtype, a, tokens in itertools.product(implementation.TYPES, (None, 8), (1, 3, 17)):
            compared += 1
            at_start, symmetric = bool(compared % 2), bool(compared // 2 % 3)
            activation = None if a is None else Spec(a, PER_ROW)
            weight = PackedTensor.encode(torch.randn(rows, length).to(dtype), Spec(bits, group_size, symmetric))
            x, bias = torch.randn(tokens, length).to(dtype), torch.randn(rows).to(dtype)
            expected = implementation.linear(x, weight, bias, activation)
            parts = [None if part is None else guarded(part, at_start) for part in weight[:3]]
            x, bias, y = (guarded(part, at_start) for part in (x, bias, torch.zeros_like(expected)))
            prepared = implementation.prepare(dtype, [(PackedTensor(*parts, *weight[3:]), bias)], activation)
            head = prepared.head(x.data_ptr(), tokens + extra_tokens, length, *prepared.numbers, 1, y.data_ptr())
            cpu.check(library.linear_call(head + prepared.matrices))
            assert y.equal(expected), (bits, group_size, rows, length, dtype, a, tokens)
            del parts, x, bias, y, prepared
            areas.clear()
    return compared


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
