"""Assembly of attention, run on the CPU."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

import ptx  # noqa: E402

from qllm_kernels.gpu import attention_registers  # noqa: E402
from qllm_kernels.gpu.unpack import byte_bias  # noqa: E402

WORDS = np.arange(2**16, dtype=np.uint32)
NEIGHBOURS = np.random.default_rng(0).permutation(WORDS)  # words in the other half of each register


def bfloat16(words):
    """Words as numbers, in float64."""
    return (words << 16).view(np.float32).astype(np.float64)


def rounded(numbers):
    """Words of the bfloat16 next to each float32, half to even."""
    return torch.from_numpy(numbers.copy()).bfloat16().view(torch.int16).numpy().astype(np.uint16).astype(np.uint32)


def fma(a, b, c):
    halves = [
        rounded((bfloat16(a >> at & 0xFFFF) * bfloat16(b >> at & 0xFFFF) + bfloat16(c >> at & 0xFFFF)).astype("f4"))
        for at in (0, 16)
    ]
    return halves[1] << 16 | halves[0]


@pytest.fixture(autouse=True)
def more_instructions(monkeypatch):
    for name, does in {
        "cvt.u32.u16": lambda a: a & 0xFFFF,
        "cvt.rn.bf16x2.f32": lambda upper, lower: rounded(upper.view("f4")) << 16 | rounded(lower.view("f4")),
        "fma.rn.bf16x2": fma,
    }.items():
        monkeypatch.setitem(ptx.INSTRUCTIONS, name, does)


def wrong_bytes(change=lambda assembly: assembly):
    wrong = 0
    for upper in (0, 1):
        (found,) = ptx.run(change(attention_registers._byte_to_bf16(upper)), NEIGHBOURS << 16 | WORDS)
        for words, half in ((WORDS, found & 0xFFFF), (NEIGHBOURS, found >> 16)):
            wrong += (bfloat16(half) != (words >> 8 * upper & 0xFF) + byte_bias(tl.bfloat16)).sum()
    return wrong


def test_bytes_of_words():
    assert wrong_bytes() == 0
    assert wrong_bytes(lambda assembly: assembly.replace("0x00800080", "0x00C000C0")) > 0
    assert wrong_bytes(lambda assembly: assembly.replace("0x6A", "0xEA")) > 0


def test_rounding_and_back():
    x = np.random.default_rng(0).standard_normal((2, 1000)).astype("f4")
    bits, first, second = ptx.run(attention_registers._round_and_back(), *x.view(np.uint32), outputs=3)
    assert (bits & 0xFFFF == rounded(x[0])).all()
    assert (bits >> 16 == rounded(x[1])).all()
    assert (first.view("f4") == bfloat16(rounded(x[0]))).all()
    assert (second.view("f4") == bfloat16(rounded(x[1]))).all()


@pytest.mark.parametrize("shift", [0, 8])
def test_words_beside_each_other(shift):
    (found,) = ptx.run(attention_registers._beside(), NEIGHBOURS, WORDS, np.full_like(WORDS, shift))
    assert (found >> 16 == NEIGHBOURS).all()
    assert (found & 0xFFFF == WORDS >> shift & 0xFF).all()
