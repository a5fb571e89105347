"""Every implementation of the linear operation on the same cases, against float64 arithmetic on the codes.

Tolerances. u is the unit roundoff of a dtype (2^-24, 2^-11, 2^-8), K the length of a row, G its groups, and
A = |x'| |w'|^T + |bias| the sum of the magnitudes that are added. Any order of summation of n terms errs by at most
n u A (Higham, Accuracy and Stability, section 3.1). So

    integer     conversion of each sum, scale, G - 1 additions, scale, bias in float32; rounding of the result
                (G + 4) u32 + u
    dequantize  x' and w' each rounded in float32 and to the dtype, K products added in float32; result and bias rounded
                (K + 4) u32 + 4 u

times A, and 1 % for products of roundings.
"""

import re
from collections import Counter
from itertools import product

import pytest
import torch
from exactness import DTYPES

from qllm_hf.errors import ConfigError
from qllm_hf.ops import LINEAR, Implementation, Request, linear, prefer, registry, resolve
from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import Spec
from qllm_hf.uniform import Quantized, quantize

ROUNDING = {
    "integer": lambda k, groups, u: (groups + 4) * 2**-24 + u,
    "dequantize": lambda k, groups, u: (k + 4) * 2**-24 + 4 * u,
}
GROUP_SIZES = (32, 64, 128, -1, 0)
implementations = pytest.mark.parametrize("implementation", LINEAR, ids=lambda implementation: implementation.name)


def meaning(quantized: Quantized, spec: Spec) -> torch.Tensor:
    """(code - zero point) * scale [rows, K] in float64, which holds it exactly."""
    codes, scale, zero_point = quantized
    size = spec.group_size if spec.group_size > 0 else codes.shape[-1]
    group = torch.arange(codes.shape[-1]) // size
    zeros = 2 ** (spec.bits - 1) if zero_point is None else zero_point.double()[:, group]
    return (codes.double() - zeros) * scale.double()[:, group]


def case(k: int, spec: Spec, activation: Spec | None, dtype: torch.dtype):
    """Inputs, and the exact result and the sums of magnitudes A, both [tokens, O] in float64."""
    x, weight, bias = torch.randn(5, k).to(dtype), (torch.randn(12, k) * 0.1).to(dtype), torch.randn(12).to(dtype)
    left = x.double() if activation is None else meaning(quantize(x, activation), activation)
    right = meaning(quantize(weight, spec), spec)
    exact = left @ right.T + bias.double()
    magnitudes = left.abs() @ right.abs().T + bias.double().abs()
    return (x, PackedTensor.encode(weight, spec), bias, activation), exact, magnitudes


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("a", [None, 8, 4], ids=["A16", "A8", "A4"])
def test_agrees_with_exact_arithmetic(dtype, a):
    """W2 to W8, symmetric or not on both sides, all group sizes, with (172) and without (256) a short last group."""
    compared = Counter()
    for bits, symmetric, group_size, k in product(range(2, 9), (False, True), GROUP_SIZES, (256, 172)):
        spec = Spec(bits, group_size, symmetric)
        activation = None if a is None else Spec(a, -1, symmetric=bool(bits % 2) ^ symmetric)
        arguments, exact, magnitudes = case(k, spec, activation, dtype)
        groups = arguments[1].scale.shape[-1]
        for implementation in LINEAR:
            if implementation.refuses(Request("cpu", dtype, spec, activation)):
                continue
            y = implementation.run(*arguments)
            assert (y.dtype, y.shape) == (dtype, (5, 12))
            bound = 1.01 * ROUNDING[implementation.name](k, groups, torch.finfo(dtype).eps / 2) * magnitudes
            assert ((y.double() - exact).abs() <= bound).all(), (implementation.name, spec)
            compared[implementation.name] += 1
    cases = 7 * 2 * len(GROUP_SIZES) * 2
    assert compared["dequantize"] == cases
    assert compared["integer"] == (0 if a is None else cases)


@pytest.mark.parametrize("a", [8, 4])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
def test_integer_and_simulated_differ_by_accumulation_order_only(a, symmetric):
    for bits in (8, 4, 3, 2):
        for group_size in GROUP_SIZES:
            spec, activation = Spec(bits, group_size, symmetric), Spec(a, -1, symmetric)
            arguments, _, magnitudes = case(172, spec, activation, torch.float32)
            with prefer("integer"):
                on_integers = linear(*arguments)
            with prefer("dequantize"):
                simulated = linear(*arguments)
            groups = arguments[1].scale.shape[-1]
            bound = sum(rounding(172, groups, 2**-24) for rounding in ROUNDING.values()) * 1.01 * magnitudes
            assert ((on_integers.double() - simulated.double()).abs() <= bound).all()


@implementations
@pytest.mark.parametrize("a", [None, 8])
def test_one_code_off_by_one_exceeds_the_tolerance(implementation, a):
    activation = None if a is None else Spec(a, -1)
    if implementation.refuses(Request("cpu", torch.float32, Spec(8, 64), activation)):
        pytest.skip("cannot take the request")
    (x, weight, bias, _), exact, magnitudes = case(256, Spec(8, 64), activation, torch.float32)
    words = weight.words.clone()
    words[3, 7] ^= 1
    wrong = implementation.run(x, weight._replace(words=words), bias, activation)
    bound = 1.01 * ROUNDING[implementation.name](256, 4, 2**-24) * magnitudes
    assert ((wrong.double() - exact).abs() > bound).any(0).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("a", [8, 4])
@pytest.mark.parametrize("w", [8, 4, 2])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_sums_of_integers_are_exact(a, w, signed):
    """Rows of integers that span the whole grid have scale 1: the result is the sum itself, here beyond 2^24."""

    def integers(rows: int, bits: int) -> torch.Tensor:
        low = -signed * (2 ** (bits - 1) - 1)
        x = torch.randint(2**bits, (rows, 4096)) + low
        x[:, 0], x[:, 1] = low, low + 2**bits - 1
        return x

    x, weight = integers(6, a), integers(10, w)
    packed, activation = PackedTensor.encode(weight.double(), Spec(w, -1)), Spec(a, -1)
    assert (packed.scale == 1).all()
    with prefer("integer"):
        y = linear(x.double(), packed, None, activation)
    assert y.equal((x @ weight.T).double())
    assert (a, w, signed) != (8, 8, False) or y.max() > 2**24


@implementations
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_any_leading_shape(implementation, shape, with_bias):
    x, spec, activation = torch.randn(*shape, 64), Spec(4, 32), Spec(8, -1)
    weight = PackedTensor.encode(torch.randn(7, 64), spec)
    bias = torch.randn(7) if with_bias else None
    y = implementation.run(x, weight, bias, activation)
    assert y.shape == (*shape, 7)
    flat = implementation.run(x.reshape(-1, 64), weight, bias, activation)
    torch.testing.assert_close(y.reshape(-1, 7), flat)
    assert with_bias != y.allclose(implementation.run(x, weight, None, activation))


@implementations
def test_no_tokens(implementation):
    """An expert, or a batch of images, may be left without any."""
    weight = PackedTensor.encode(torch.randn(7, 64), Spec(4, 32))
    assert implementation.run(torch.randn(0, 64), weight, None, Spec(8, -1)).shape == (0, 7)


# The choice

WITH_FLOATS = Request("cpu", torch.float32, Spec(4), None)
WITH_CODES = Request("cpu", torch.float32, Spec(4), Spec(8, -1))


def test_resolution_explains_itself():
    resolution = resolve(WITH_FLOATS)
    assert dict(resolution.refused)["integer"] == "activations are in floating point"
    assert str(resolution).startswith(f"{resolution.chosen.name} ({resolution.chosen.summary})")
    assert "not integer: activations are in floating point" in str(resolution)


def test_what_is_exact_but_slow_runs_only_on_demand(monkeypatch):
    monkeypatch.delenv("QLLM_HF_LINEAR", raising=False)
    assert dict(resolve(WITH_CODES).refused)["integer"] == "runs only on demand (QLLM_HF_LINEAR=integer)"
    monkeypatch.setenv("QLLM_HF_LINEAR", "integer")
    assert resolve(WITH_CODES).chosen.name == "integer"
    assert resolve(WITH_FLOATS).chosen.name != "integer", "where it cannot run, another does"


def test_prefer_holds_within_its_block(monkeypatch):
    monkeypatch.delenv("QLLM_HF_LINEAR", raising=False)
    with prefer("integer"):
        assert resolve(WITH_CODES).chosen.name == "integer"
        with prefer(None):
            assert resolve(WITH_CODES).chosen.name != "integer"
        assert resolve(WITH_CODES).chosen.name == "integer"
    with pytest.raises(KeyError), prefer("integer"):
        raise KeyError
    assert resolve(WITH_CODES).chosen.name != "integer"


def test_prefer_is_what_runs(monkeypatch):
    ran = []
    for implementation in LINEAR:
        spy = Implementation(
            implementation.name, "", lambda *_, name=implementation.name: ran.append(name), lambda _: None
        )
        monkeypatch.setattr(registry, "LINEAR", (spy,))
        linear(torch.randn(1, 32), PackedTensor.encode(torch.randn(2, 32), Spec(4, 32)), None, Spec(8, -1))
    assert ran == [implementation.name for implementation in LINEAR]


def test_prefer_wins_over_a_faster_one(monkeypatch):
    monkeypatch.delenv("QLLM_HF_LINEAR", raising=False)
    fast = Implementation("fast", "made up", LINEAR[-1].run, lambda _: None)
    monkeypatch.setattr(registry, "LINEAR", (fast, *LINEAR))
    assert resolve(WITH_FLOATS).chosen is fast
    with prefer("dequantize"):
        assert resolve(WITH_FLOATS).chosen.name == "dequantize"


def test_the_last_implementation_accepts_everything():
    for dtype in (*DTYPES, torch.float64):
        for activation in (None, Spec(2, -1, True, True)):
            assert LINEAR[-1].refuses(Request("made-up-device", dtype, Spec(2, 0), activation)) is None


def test_unknown_implementation(monkeypatch):
    names = ", ".join(implementation.name for implementation in LINEAR)
    message = re.escape(f"QLLM_HF_LINEAR='marlin' is no implementation: allowed are {names}.")
    with pytest.raises(ConfigError, match=message), prefer("marlin"):
        pass
    monkeypatch.setenv("QLLM_HF_LINEAR", "marlin")
    with pytest.raises(ConfigError, match=message):
        resolve(WITH_FLOATS)
