"""Activations to integers: bit for bit the codes and scales that torch chooses."""

import pytest
import torch

pytest.importorskip("triton")

from qllm_hf.ops import integer
from qllm_hf.scheme import PER_ROW, Spec
from qllm_hf.uniform import quantize
from qllm_kernels.gpu import tokens

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def numbers(shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def quantized(x, bits, symmetric, **rest):
    return tokens.quantize_tokens(x, bits=bits, symmetric=symmetric, **rest)


ROWS = {
    "normal": lambda x: x,
    "one side": lambda x: x.abs() + 5,
    "the other side": lambda x: -x.abs() - 5,
    "zeros": lambda x: 0 * x,
    "next to nothing": lambda x: x * 1e-7,
    "an outlier": lambda x: x * torch.where(torch.arange(x.shape[-1]) == 3, 300.0, 1.0),
    "halves": lambda x: (x * 4).round() / 2,
    "large": lambda x: x * 1e4,
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_are_those_of_torch(dtype, kind):
    """8 bits with and without zero points, and each of the others one way here and the other way in the next type."""
    x, turn = ROWS[kind](numbers((3, 200))).to(dtype), DTYPES.index(dtype) + list(ROWS).index(kind)
    for bits, symmetric in [(8, False), (8, True), *((bits, bool((bits + turn) % 2)) for bits in range(2, 8))]:
        ours, theirs = quantized(x, bits, symmetric), quantize(x, Spec(bits, PER_ROW, symmetric))
        assert ours.scale.dtype == dtype and torch.equal(ours.scale, theirs.scale.squeeze(-1))
        centered = integer._centered(theirs.codes, theirs.zero_point, Spec(bits, PER_ROW, symmetric))
        zero = 0 if ours.zero_point is None else ours.zero_point[:, None]
        assert (ours.zero_point is None) == (bits < 8 or symmetric)
        assert torch.equal((ours.codes - zero)[:, :200].double(), centered)
        assert not (ours.codes - zero)[:, 200:].any()


@pytest.mark.parametrize("length", (1, 31, 128, 129, 300))
@pytest.mark.parametrize("over", (32, 64, 128, 384))
def test_sums(length, over):
    found = quantized(numbers((2, length), dtype=torch.bfloat16), 8, False, sums_over=over)
    values = torch.nn.functional.pad((found.codes - found.zero_point[:, None])[:, :length], (0, -length % over))
    assert torch.equal(found.sums.T, values.unflatten(-1, (-1, over)).sum(-1).int())


def test_a_row_of_many_steps(monkeypatch):
    x = numbers((2, 700), dtype=torch.bfloat16)
    whole = quantized(x, 8, False, sums_over=128), quantized(x, 8, False, sums_over=768)
    monkeypatch.setattr(tokens, "_MOST_AT_ONCE", 256)
    parts = quantized(x, 8, False, sums_over=128), quantized(x, 8, False, sums_over=768)
    for one, other in zip(whole, parts, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))


def test_nothing_to_quantize():
    found = quantized(torch.empty(0, 200), 8, False, sums_over=64)
    assert found.codes.shape == (0, 256) and found.scale.shape == (0,) and found.sums.shape == (4, 0)


@pytest.mark.parametrize(
    ("x", "bits", "reason"),
    [
        (torch.zeros(1, 2, 3), 8, "takes \\[M, K\\]"),
        (torch.zeros(2, 3, dtype=torch.float64), 8, "float64"),
        (torch.zeros(2, 3), 9, "9 bits"),
    ],
)
def test_refusals(x, bits, reason):
    with pytest.raises(ValueError, match=reason):
        quantized(x, bits, False)


@pytest.mark.parametrize("over", (-1, 16, 96, 192))
def test_refused_spans(over):
    with pytest.raises(ValueError, match=f"sums over {over} of 200"):
        quantized(torch.zeros(2, 200), 8, False, sums_over=over)


def test_a_wrong_kernel_is_noticed(monkeypatch):
    x = numbers((3, 200))
    right = quantize(x, Spec(4, PER_ROW, True)).codes
    assert torch.equal(quantized(x, 4, True).codes[:, :200] + 8, right.to(torch.int8))
    codes = tokens.codes
    monkeypatch.setattr(tokens, "codes", lambda x, *rest: codes(x + 1e-3, *rest))
    assert not torch.equal(quantized(x, 4, True).codes[:, :200] + 8, right.to(torch.int8))
