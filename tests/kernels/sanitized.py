"""Runs a library that was built with sanitizers on few cases of each kind; they end this program when they find fault.

    python tests/kernels/sanitized.py FOLDER_OF_THE_LIBRARY [EXTRA_TOKENS]

EXTRA_TOKENS lets the kernels believe in so many tokens more than there are.
"""

import itertools
import sys
from pathlib import Path

import qllm_hf  # noqa: F401  (in a source tree it knows where the kernels are)
from qllm_kernels import cpu

cpu.FOLDER = Path(sys.argv[1])  # before anything opens the library

import torch  # noqa: E402

from qllm_hf import native  # noqa: E402
from qllm_hf.attention import KvRows, Request  # noqa: E402
from qllm_hf.attention import native as attention  # noqa: E402
from qllm_hf.kv_rows import RowFormat  # noqa: E402
from qllm_hf.ops import cpu as implementation  # noqa: E402
from qllm_hf.packed import PackedTensor  # noqa: E402
from qllm_hf.scheme import ALLOWED_BITS, PER_ROW, Spec  # noqa: E402

GROUP_SIZES = (32, 64, 128, PER_ROW, 0)
SHAPES = ((5, 300), (1, 1), (34, 64), (3, 40), (9, 129))
HEADS = ((64, 64), (128, 32), (80, 80), (20, 10), (256, PER_ROW))  # length and group size
COUNTS = ((1, 2, 1), (17, 1, 3), (65, 1, 1), (70, 5, 2), (130, 33, 1))  # tokens, queries, query heads of a key head


def products(extra_tokens: int) -> int:
    """How many products ran: bits x groups, with shapes, dtypes, activations and symmetry in turn, tokens each."""
    kinds = itertools.cycle(itertools.product(SHAPES, implementation.TYPES, (None, 8, 4), (False, True)))
    count = 0
    for bits, group_size in itertools.product(ALLOWED_BITS, GROUP_SIZES):
        for (rows, length), dtype, a, symmetric in itertools.islice(kinds, 5):
            weight = PackedTensor.encode(torch.randn(rows, length).to(dtype), Spec(bits, group_size, symmetric))
            activation = None if a is None else Spec(a, PER_ROW, symmetric)
            for tokens in (1, 3, 17):
                x, bias = torch.randn(tokens, length).to(dtype), torch.randn(rows).to(dtype)
                prepared = implementation.prepare(dtype, [(weight, bias)], activation)
                y = x.new_empty(tokens, rows)
                head = prepared.head(x.data_ptr(), tokens + extra_tokens, length, *prepared.numbers, 2, y.data_ptr())
                cpu.check(cpu.library().linear_call(head + prepared.matrices))
                count += 1
    return count


def attentions() -> int:
    """How many times queries met packed rows: bits x lengths, with counts, dtypes, masks and symmetry in turn."""
    kinds = itertools.cycle(itertools.product(COUNTS, implementation.TYPES, (None, torch.bool, float), (False, True)))
    count = 0
    for bits, (length, group_size) in itertools.product(ALLOWED_BITS, HEADS):
        for (tokens, queries, group), dtype, mask, symmetric in itertools.islice(kinds, 7):
            x = torch.randn(2, 2, tokens, length).to(dtype)
            form = RowFormat(Spec(bits, group_size, symmetric), length, dtype)
            rows = KvRows(form.encode(x), form)
            assert native.decode_rows(rows.rows, form.spec, length, dtype) is not None
            shown = None if mask is None else torch.randn(2, 1, queries, tokens).to(dtype if mask is float else mask)
            query = torch.randn(2, 2 * group, queries, length).to(dtype)
            request = Request(query, rows, rows, shown, shown is None, 0.1, 5.0, torch.randn(2 * group))
            assert attention.refuses(request) is None
            attention.weighted(attention.scores(query, rows), rows)
            attention.attend(request)
            count += 1
    return count


def decoded() -> int:
    """How many weights were packed and unpacked: bits x groups, with shapes, dtypes and symmetry in turn."""
    kinds = itertools.cycle(itertools.product(SHAPES, implementation.TYPES, (False, True)))
    count = 0
    for bits, group_size in itertools.product(ALLOWED_BITS, (1, 7, *GROUP_SIZES)):
        for shape, dtype, symmetric in itertools.islice(kinds, 7):
            packed = PackedTensor.encode(torch.randn(shape).to(dtype), Spec(bits, group_size, symmetric))
            assert native.decode(*packed, dtype) is not None
            count += 1
    return count


def main(extra_tokens: int = 0) -> None:
    """Every level in turn, and tile registers written out in C++."""
    levels = cpu.library().levels
    for level in (*levels, *(["amx_twin"] if "avx512_vnni" in levels else [])):
        cpu.library().set_level(level)
        print(f"{level}: {products(extra_tokens)} products, {attentions()} attentions, {decoded()} weights unpacked")


if __name__ == "__main__":
    main(*map(int, sys.argv[2:]))
