"""Kernels that a gate has to find fault with, and one that it has not: run by test_gate.py, where Triton compiles."""

import json

import triton
import triton.language as tl

from qllm_kernels.gpu.compiled import compile_gate
from qllm_kernels.gpu.gate import Gate, faults


@triton.jit
def products(y, x, words, k, NAIVE: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr):
    """Sums of 4-bit codes times x [K], as bits of int32 words: one float a code, or four codes added as integers."""
    row, place = tl.arange(0, ROWS), tl.arange(0, SPAN)
    total = tl.zeros((ROWS, SPAN), tl.float32)
    for start in range(0, k, SPAN):
        word = tl.load(words + row[:, None] * k + start + place[None, :])
        if NAIVE:
            for plane in tl.static_range(8):
                factor = tl.load(x + (start + place) * 8 + plane).to(tl.float32)
                total += ((word >> (4 * plane)) & 15).to(tl.float32) * factor[None, :]
        else:
            total += word.to(tl.float32)
    tl.store(y + row, tl.sum(total, 1))


@triton.jit
def spilled(y, x, k, SIZE: tl.constexpr):
    """Keeps more numbers than a thread has registers."""
    place = tl.arange(0, SIZE)
    kept, other = tl.zeros((SIZE,), tl.float32), tl.zeros((SIZE,), tl.float32)
    for step in range(k):
        x_here = tl.load(x + step * SIZE + place)
        kept += x_here
        other = tl.maximum(other, kept * x_here)
    tl.store(y + place, kept)
    tl.store(y + SIZE + place, other)


@triton.jit
def narrow(y, x, k, SIZE: tl.constexpr):
    """Reads 16 bits at a time, since the stride between its numbers is not known."""
    place = tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.float32)
    for step in range(k):
        total += tl.load(x + (step * SIZE + place) * k).to(tl.float32)
    tl.store(y + place, total)


PRODUCT = {"y": "*fp32", "x": "*fp16", "words": "*i32", "k": "i32"}
TILE = {"ROWS": 32, "SPAN": 64}
CODES = 32 * 64 * 8
GATES = {
    "naive": Gate("naive", products, PRODUCT, {"NAIVE": True, **TILE}, CODES, budget=3.9, divisible=("k",)),
    "good": Gate("good", products, PRODUCT, {"NAIVE": False, **TILE}, CODES, budget=3.9, divisible=("k",)),
    "spilled": Gate("spilled", spilled, {"y": "*fp32", "x": "*fp32", "k": "i32"}, {"SIZE": 2**15}),
    "narrow": Gate("narrow", narrow, {"y": "*fp32", "x": "*fp16", "k": "i32"}, {"SIZE": 1024}),
    "no tensor cores": Gate("no tensor cores", narrow, {"y": "*fp32", "x": "*fp16", "k": "i32"}, {"SIZE": 1024},
                            expects="HGMMA", wide=False),
    "no loop": Gate("no loop", narrow, {"y": "*fp32", "x": "*fp16"}, {"SIZE": 1024, "k": 1}, 1024,
                    budget=100.0, wide=False),
}  # fmt: skip

if __name__ == "__main__":
    print(json.dumps({name: faults(gate, compile_gate(gate, "cuda:90")) for name, gate in GATES.items()}))
