"""Every implementation of the linear operation on the same cases, against float64 arithmetic on the codes."""

import re
from collections import Counter
from itertools import product

import pytest
import torch
from exactness import DTYPES
from linear_reference import Exact, exact

from qllm_hf.errors import ConfigError, QllmError
from qllm_hf.ops import LINEAR, Implementation, Request, linear, prefer, registry, resolve
from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import Spec

GROUP_SIZES = (32, 64, 128, -1, 0)
implementations = pytest.mark.parametrize("implementation", LINEAR, ids=lambda implementation: implementation.name)


def skip_what_it_refuses(implementation: Implementation, spec: Spec, activation: Spec | None) -> None:
    reason = implementation.refuses(Request("cpu", torch.float32, spec, activation))
    if reason is not None:
        pytest.skip(f"{implementation.name}: {reason}")


def case(k: int, spec: Spec, activation: Spec | None, dtype: torch.dtype) -> tuple[tuple[object, ...], Exact]:
    """Arguments of the operation, and what its result should be."""
    x, weight, bias = torch.randn(5, k).to(dtype), (torch.randn(12, k) * 0.1).to(dtype), torch.randn(12).to(dtype)
    arguments = (x, PackedTensor.encode(weight, spec), bias, activation)
    return arguments, exact(*arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("a", [None, 8, 4], ids=["A16", "A8", "A4"])
def test_agrees_with_exact_arithmetic(dtype, a):
    """W2 to W8, symmetric or not on both sides, all group sizes, with (172) and without (256) a short last group."""
    compared = Counter()
    for bits, symmetric, group_size, k in product(range(2, 9), (False, True), GROUP_SIZES, (256, 172)):
        spec = Spec(bits, group_size, symmetric)
        activation = None if a is None else Spec(a, -1, symmetric=bool(bits % 2) ^ symmetric)
        arguments, wanted = case(k, spec, activation, dtype)
        for implementation in LINEAR:
            if implementation.refuses(Request("cpu", dtype, spec, activation)):
                continue
            y = implementation.run(*arguments)
            assert (y.dtype, y.shape) == (dtype, (5, 12))
            assert ((y.double() - wanted.y).abs() <= wanted.tolerance(implementation.name)).all(), (
                implementation.name,
                spec,
            )
            compared[implementation.name] += 1
    cases = 7 * 2 * len(GROUP_SIZES) * 2
    assert compared["dequantize"] == cases
    assert compared["integer"] == (0 if a is None else cases)
    assert compared["cpu"] == (cases if "cpu" in compared else 0), "all of them, or none where it is not built"


@pytest.mark.parametrize("a", [8, 4])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
def test_integer_and_simulated_differ_by_accumulation_order_only(a, symmetric):
    for bits in (8, 4, 3, 2):
        for group_size in GROUP_SIZES:
            spec, activation = Spec(bits, group_size, symmetric), Spec(a, -1, symmetric)
            arguments, wanted = case(172, spec, activation, torch.float32)
            with prefer("integer"):
                on_integers = linear(*arguments)
            with prefer("dequantize"):
                simulated = linear(*arguments)
            bound = wanted.tolerance("integer") + wanted.tolerance("dequantize")
            assert ((on_integers.double() - simulated.double()).abs() <= bound).all()


@implementations
@pytest.mark.parametrize("a", [None, 8])
def test_one_code_off_by_one_exceeds_the_tolerance(implementation, a):
    activation = None if a is None else Spec(a, -1)
    skip_what_it_refuses(implementation, Spec(8, 64), activation)
    (x, weight, bias, _), wanted = case(256, Spec(8, 64), activation, torch.float32)
    words = weight.words.clone()
    words[3, 7] ^= 1
    wrong = implementation.run(x, weight._replace(words=words), bias, activation)
    bound = wanted.tolerance(implementation.name)
    assert ((wrong.double() - wanted.y).abs() > bound).any(0).nonzero().flatten().tolist() == [3]


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
    skip_what_it_refuses(implementation, spec, activation)
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
    skip_what_it_refuses(implementation, Spec(4, 32), Spec(8, -1))
    weight = PackedTensor.encode(torch.randn(7, 64), Spec(4, 32))
    assert implementation.run(torch.randn(0, 64), weight, None, Spec(8, -1)).shape == (0, 7)


# The choice

# in float64, which the C++ kernels leave to torch wherever they are built
WITH_FLOATS = Request("cpu", torch.float64, Spec(4), None)
WITH_CODES = Request("cpu", torch.float64, Spec(4), Spec(8, -1))


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


@implementations
@pytest.mark.parametrize("a", [None, 8], ids=["A16", "A8"])
def test_integers_are_refused(implementation, a):
    """The weight would be rounded to them."""
    weight, activation = PackedTensor.encode(torch.randn(12, 64), Spec(4, 32)), a and Spec(a, -1)
    for dtype in (torch.int64, torch.uint8, torch.bool):
        with prefer(implementation.name), pytest.raises(QllmError, match="floating-point"):
            linear(torch.ones(3, 64).to(dtype), weight, None, activation)
