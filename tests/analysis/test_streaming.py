"""Statistics of a stream equal those of all its numbers at once, however it is cut."""

import math
from dataclasses import asdict
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qllm_hf.analysis import streaming
from qllm_hf.analysis.noise import Noise
from qllm_hf.analysis.streaming import Central, Stream
from qllm_hf.errors import CalibrationError
from qllm_hf.scheme import PER_ROW, Spec
from qllm_hf.uniform import fake_quantize


def exact_moments(numbers: list[float]) -> tuple[float, list[float]]:
    """Mean and central moments of order 2 to 4, divided by the count, in rational arithmetic."""
    exact = [Fraction(number) for number in numbers]
    mean = sum(exact) / len(exact)
    return float(mean), [float(sum((x - mean) ** order for x in exact) / len(exact)) for order in (2, 3, 4)]


def two_pass_moments(x: torch.Tensor) -> tuple[float, list[float]]:
    """The same in float64, where there are too many numbers for the other."""
    x = x.double()
    deviation = x - x.mean()
    return float(x.mean()), [float(deviation.pow(order).mean()) for order in (2, 3, 4)]


def is_right(found: Central, wanted: tuple[float, list[float]], relative: float = 1e-9) -> bool:
    """Whether moments agree, each by its own scale: the mean to std, the third moment to std^3."""
    mean, (second, third, fourth) = wanted
    std, n = math.sqrt(second), found.count
    # what float64 can know of numbers so far from 0
    slack = relative * (std + 1e-7 * abs(mean))
    return (
        abs(found.mean - mean) <= slack
        and abs(found.m2 / n - second) <= slack * std
        and abs(found.m3 / n - third) <= 10 * slack * std**2 * math.sqrt(max(fourth, 1e-300)) / max(second, 1e-300)
        and abs(found.m4 / n - fourth) <= 10 * slack * fourth / max(std, 1e-300)
    )


def by_power_sums(numbers: list[float]) -> Central:
    """What one might do instead: sums of powers, and the binomial theorem. Loses everything far from 0."""
    x = torch.tensor(numbers, dtype=torch.float64)
    n, one, two, three, four = len(x), *(float(x.pow(order).sum()) for order in (1, 2, 3, 4))
    mean = one / n
    return Central(
        n,
        mean,
        two - n * mean**2,
        three - 3 * mean * two + 2 * n * mean**3,
        four - 4 * mean * three + 6 * mean**2 * two - 3 * n * mean**4,
    )


@st.composite
def tensors(draw):
    """Float32 rows [T, C] of ordinary and hostile kinds, and where to cut them."""
    channels, rows = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x = torch.randn(rows, channels, generator=generator) * draw(st.sampled_from([1e-6, 1.0, 300.0]))
    x = x + draw(st.sampled_from([0.0, -7.0, 1e4, -1e7]))
    kind = draw(st.sampled_from(["plain", "outlier", "constant", "two values", "zeros"]))
    if kind == "outlier":
        x[draw(st.integers(0, rows - 1)), draw(st.integers(0, channels - 1))] = draw(st.sampled_from([1e5, -1e9]))
    if kind == "constant":
        x = torch.full_like(x, float(x[0, 0]))
    if kind == "two values":
        x = torch.where(x > x.median(), 1.0, 0.1)
    if kind == "zeros":
        x = torch.zeros_like(x)
    cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=4)))
    return x, cuts


@settings(max_examples=150, deadline=None)
@given(tensors())
def test_moments_equal_those_in_rational_arithmetic(drawn):
    x, cuts = drawn
    wanted = exact_moments(x.flatten().tolist())
    parts = torch.tensor_split(x, cuts)
    pieces, whole, merged = Stream("x", x.shape[1]), Stream("x", x.shape[1]), Stream("x", x.shape[1])
    whole.add(x)
    for part in parts:
        pieces.add(part)
        one = Stream("x", x.shape[1])
        one.add(part)
        merged.merge(one)
    for stream in (whole, pieces, merged):
        assert stream.count == x.numel()
        assert is_right(stream.central, wanted), (stream.central, wanted)
        assert torch.equal(stream.channel_low, x.amin(0))
        assert torch.equal(stream.channel_high, x.amax(0))
        assert torch.equal(stream._bins, whole._bins)
    summary = whole.summary()
    assert (summary.low, summary.high, summary.absmax) == (float(x.min()), float(x.max()), float(x.abs().max()))


def test_sums_of_powers_would_not_pass():
    x = torch.randn(50, 1) + 1e7
    numbers = x.flatten().tolist()
    assert is_right(Central.of(x), exact_moments(numbers))
    assert not is_right(by_power_sums(numbers), exact_moments(numbers))


@pytest.mark.parametrize("wrong", ["mean", "m2", "m3", "m4"])
def test_a_wrong_moment_would_be_seen(wrong):
    x = torch.randn(50, 2).exp()
    found, wanted = Central.of(x), exact_moments(x.flatten().tolist())
    assert is_right(found, wanted)
    assert not is_right(Central(**(asdict(found) | {wrong: getattr(found, wrong) * (1 + 1e-6)})), wanted)


def test_large_tensors_are_cut_and_nothing_is_lost(monkeypatch):
    x = torch.randn(3000, 7) * torch.tensor([1, 1, 1, 50, 1, 1, 0.1])
    whole = Stream("x", 7)
    whole.add(x)
    monkeypatch.setattr(streaming, "PIECE", 100)
    cut = Stream("x", 7)
    cut.add(x.view(30, 100, 7))
    assert is_right(cut.central, two_pass_moments(x))
    for name, value in asdict(whole.summary()).items():
        assert getattr(cut.summary(), name) == pytest.approx(value, rel=1e-12, abs=1e-12)
    summary = cut.summary()
    assert (summary.channels, summary.largest_channel) == (7, 3)
    absmax = x.abs().amax(0)
    assert summary.channel_spread == pytest.approx(float(absmax.max() / absmax.median()))


@pytest.mark.parametrize(
    ("x", "kurtosis"),
    [
        (torch.randn(400_000, 1), 3.0),
        (torch.rand(400_000, 1), 1.8),
        (torch.tensor([[-1.0], [1.0]]).repeat(50, 1), 1.0),
    ],
    ids=["normal", "uniform", "two values"],
)
def test_kurtosis_is_pearsons(x, kurtosis):
    stream = Stream("x", 1)
    stream.add(x)
    summary = stream.summary()
    assert summary.kurtosis == pytest.approx(kurtosis, abs=0.05)
    assert summary.excess_kurtosis == pytest.approx(summary.kurtosis - 3)
    assert summary.std == pytest.approx(float(x.std(unbiased=False)), rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e7])
def test_constants_have_no_kurtosis_and_no_outliers(value):
    stream = Stream("x", 3)
    for _ in range(7):
        stream.add(torch.full((11, 3), value))
    summary = stream.summary()
    assert (summary.std, summary.kurtosis, summary.excess_kurtosis, summary.outlier_ratio) == (0.0, None, None, 0.0)
    assert summary.channel_spread == (1.0 if value else None)


def test_single_element():
    stream = Stream("x", 1)
    stream.add(torch.tensor([2.5]))
    summary = stream.summary()
    assert (summary.count, summary.mean, summary.std, summary.kurtosis) == (1, 2.5, 0.0, None)


@pytest.mark.parametrize("offset", [0.0, 3.0, -40.0])
@pytest.mark.parametrize("deviations", [1.0, 3.0, 6.0])
def test_tails_are_known_to_a_bin(offset, deviations):
    x = torch.distributions.StudentT(4.0).sample((200_000, 2)) + offset
    stream = Stream("x", 2)
    stream.add(x)
    mean, std = float(x.double().mean()), float(x.double().std(unbiased=False))

    def share(up: float, down: float) -> float:
        return float(((x > up) | (x < down)).float().mean())

    up, down = mean + deviations * std, mean - deviations * std
    finest = 2**-6  # of a bin, which is also 2^-7 of the numbers at its other end
    found = stream.share_beyond(deviations)
    least = share(up + finest * abs(up), down - finest * abs(down))
    most = share(up - finest * abs(up), down + finest * abs(down))
    assert least <= found <= most
    if offset == 0:
        assert found == pytest.approx(share(up, down), rel=0.03)
        assert share(1.1 * up, 1.1 * down) != pytest.approx(share(up, down), rel=0.03), "a coarser one would be seen"


def test_no_tail_beyond_the_largest():
    stream = Stream("x", 1)
    stream.add(torch.tensor([-1.0, 1.0]).repeat(8).unsqueeze(1))
    assert (stream.share_beyond(0.5), stream.share_beyond(1.5)) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("bad", "words"), [(float("nan"), "holds NaN"), (float("inf"), "infinite"), (float("-inf"), "infinite")]
)
def test_what_is_not_finite_is_named(bad, words):
    stream = Stream("the input of model.layers.3.mlp.down_proj", 2)
    stream.add(torch.zeros(4, 2))
    with pytest.raises(CalibrationError, match=rf"the input of model\.layers\.3\.mlp\.down_proj .*{words}"):
        stream.add(torch.tensor([[0.0, bad]]))


def test_noise_is_that_of_the_quantizer():
    x = torch.randn(60, 40)
    specs = {bits: Spec(bits, PER_ROW) for bits in (2, 4, 8)}
    noise = Noise(specs, 40)
    for part in x.split(17):
        noise.add(part)
    for bits, found in noise.sqnr().items():
        error = fake_quantize(x, specs[bits]) - x
        wanted = 10 * math.log10(float(x.square().sum() / error.square().sum()))
        assert found == pytest.approx(wanted, abs=1e-4)
        assert found != pytest.approx(wanted + 0.1, abs=1e-4)


def test_noise_in_the_output_is_that_of_a_product():
    """With independent channels, the energies of channels say what the product's error is."""
    x, weight = torch.randn(4000, 64), torch.randn(64, 64)
    x[:, 5] *= 60  # an outlier, which the weights that read it undo
    weight[:, 5] /= 60
    specs = {4: Spec(4, PER_ROW)}
    noise = Noise(specs, 64)
    noise.add(x)
    output, wrong = x @ weight.T, (fake_quantize(x, specs[4]) - x) @ weight.T
    wanted = 10 * math.log10(float(output.square().sum() / wrong.square().sum()))
    assert noise.sqnr(weight.square().sum(0))[4] == pytest.approx(wanted, abs=0.5)
    assert noise.sqnr()[4] > wanted + 6, "the outlier's own energy hides what happens to the others"


def test_noise_in_logits_is_that_of_attention():
    keys, queries = 3 * torch.randn(500, 16), 3 * torch.randn(500, 16)
    spec = Spec(3, 16)
    noise = Noise({3: spec}, 16)
    noise.add(keys)
    wrong = queries @ (fake_quantize(keys, spec) - keys).T / 4
    assert noise.logit_noise(16, 0.25)[3] == pytest.approx(float(wrong.std()), rel=0.05)


def test_nothing_is_lost_where_there_is_nothing():
    noise = Noise({2: Spec(2, PER_ROW)}, 8)
    noise.add(torch.zeros(5, 8))
    assert noise.sqnr() == {2: None}
    assert noise.logit_noise(8, 1.0) == {2: 0.0}
