"""Quantization against two references: the published arithmetic, bit for bit, and exact fractions."""

import math

import pytest
import torch
from exactness import BITS, DTYPES, adversarial_groups, compare_all, mismatches, random_groups, real_tensors, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_reference import exact_group, published

from qllm_hf.errors import SchemeError
from qllm_hf.scheme import Spec
from qllm_hf.uniform import check_group_size, dequantize, fake_quantize, quantize

ALL_BITS = range(2, 9)
MODES = [pytest.param(False, id="asymmetric"), pytest.param(True, id="symmetric")]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
modes = pytest.mark.parametrize("symmetric", MODES)


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of rounding to a dtype."""
    return torch.finfo(dtype).eps / 2


# The published arithmetic


def test_a_million_groups_have_the_published_bits(stories, tinystories_text):
    """Weights in groups, keys and values by head, activations by row; made up, adversarial and real."""
    real = real_tensors(stories, tinystories_text[:4])
    real |= {tensor: [x[:1000] for x in real[tensor]] for tensor in ("W", "A")}  # the benchmark takes them all
    rows = list(compare_all(100_000, real))
    assert [row for row in rows if row.mismatches] == []
    assert sum(row.groups for row in rows) >= 1_000_000
    compared = {(row.tensor, row.bits, row.dtype, row.symmetric, row.source) for row in rows if row.groups > 100}
    assert len(compared) == sum(map(len, BITS.values())) * len(DTYPES) * 2 * 3


def test_one_different_bit_would_be_counted():
    x = random_groups(50, 32)
    y = x.clone()
    y[8, 0], x[8, 0] = 0.0, -0.0
    y[7, 3] = torch.nextafter(x[7, 3], torch.tensor(math.inf))
    assert same_bits(x, y).logical_not().nonzero().tolist() == [[7, 3], [8, 0]]


def test_another_formula_would_be_counted():
    """The default differs in 16 bits, and in float32 for one-sided groups."""
    wide, one_sided = random_groups(900, 32), 5 + torch.rand(900, 32)
    for x, bits in ((wide.bfloat16(), 8), (one_sided, 4)):
        assert mismatches(x, Spec(bits, 32), 32) > 850
        assert mismatches(x, Spec(bits, 32, paper_exact=True), 32) == 0


@dtypes
@modes
@pytest.mark.parametrize("group_size", [-1, 0])
def test_whole_rows_and_whole_tensors_have_the_published_bits(dtype, symmetric, group_size):
    x = random_groups(24, 172).to(dtype)
    for bits in ALL_BITS:
        wanted = published(x, bits, symmetric=symmetric, group_size=group_size)
        assert same_bits(fake_quantize(x, Spec(bits, group_size, symmetric, paper_exact=True)), wanted).all()


def test_published_corner_cases_are_kept():
    """The numbers of the published code, which are also why they are not the default."""
    x = torch.tensor([[5.0, 5.5, 6.0], [-6.0, -5.5, -5.0], [7.0, 7.0, 7.0], [0.0, 0.0, 0.0]])
    got = fake_quantize(x, Spec(4, 3, paper_exact=True))
    torch.testing.assert_close(got, torch.tensor([[1.0] * 3, [-1.0] * 3, [1e-5] * 3, [0.0] * 3]))
    assert fake_quantize(torch.tensor([-40000.0, 40000.0]).half(), Spec(4, 2, paper_exact=True)).isnan().all()


def test_published_code_takes_no_short_group():
    with pytest.raises(SchemeError, match=r"group_size=32 does not divide 80 .* Nearest divisors: 20 and 40; or"):
        quantize(torch.randn(2, 80), Spec(4, 32, paper_exact=True))
    check_group_size(80, Spec(4, 32))
    check_group_size(80, Spec(4, 16, paper_exact=True))
    check_group_size(80, Spec(4, -1, paper_exact=True))


# The default


@dtypes
@modes
@pytest.mark.parametrize("bits", ALL_BITS)
def test_default_agrees_with_exact_fractions(dtype, symmetric, bits):
    """Scales, zero points, codes and values; a code may differ only where float32 cannot tell which is nearer."""
    x = torch.cat([random_groups(24, 16).to(dtype), adversarial_groups(36, 16, bits, dtype)])
    codes, scale, zero_point = quantize(x, Spec(bits, 16, symmetric))
    values = fake_quantize(x, Spec(bits, 16, symmetric))
    doubtful = 0
    for i, group in enumerate(x.tolist()):
        exact = exact_group(group, bits, dtype, symmetric=symmetric)
        assert scale[i].item() == exact.scale
        assert zero_point is None or zero_point[i].item() == exact.zero_point
        certain = [k for k in range(16) if not exact.doubtful[k]]
        assert [codes[i, k].item() for k in certain] == [exact.codes[k] for k in certain]
        assert [values[i, k].item() for k in certain] == [exact.values[k] for k in certain]
        doubtful += 16 - len(certain)
    assert doubtful == 0 if dtype != torch.float32 else doubtful < 0.01 * x.numel()


@modes
def test_default_has_the_published_bits_in_float32_where_groups_span_zero(symmetric):
    x = random_groups(5000, 32)
    x[:, 0], x[:, 1] = -x[:, 0].abs(), x[:, 1].abs()
    for bits in ALL_BITS:
        wanted = published(x, bits, symmetric=symmetric, group_size=32)
        assert same_bits(fake_quantize(x, Spec(bits, 32, symmetric)), wanted).all()


@dtypes
@modes
@pytest.mark.parametrize("bits", ALL_BITS)
def test_error_is_half_a_step(dtype, symmetric, bits):
    """|x' - x| <= scale / 2, plus what rounding the scale to its dtype can cut off at the end of the range."""
    x = torch.cat([random_groups(500, 64).to(dtype), (5 + torch.rand(50, 64)).to(dtype), -torch.rand(50, 64).to(dtype)])
    spec = Spec(bits, 64, symmetric)
    scale = quantize(x, spec).scale.double()
    error = (fake_quantize(x, spec).double() - x.double()).abs().amax(-1, keepdim=True)
    finfo = torch.finfo(dtype)
    rounding_of_scale = torch.maximum(scale * unit_roundoff(dtype), torch.tensor(finfo.smallest_normal * finfo.eps / 2))
    rounding_of_result = x.double().abs().amax(-1, keepdim=True) * 2 * unit_roundoff(dtype)
    bound = scale / 2 + (2**bits - 1) * rounding_of_scale + rounding_of_result
    assert (error <= bound).all()
    assert (error > 0.4 * scale).float().mean() > 0.5, "the bound is not much wider than the error"


@modes
def test_one_sided_group_survives(symmetric):
    x = torch.tensor([[5.0, 5.25, 5.5, 6.0]])
    for values in (x, -x):
        assert (fake_quantize(values, Spec(4, 4, symmetric)) - values).abs().max() <= 6.0 / (7 if symmetric else 15) / 2
        assert (fake_quantize(values, Spec(4, 4, paper_exact=True)) - values).abs().min() > 3.9


@dtypes
@modes
@pytest.mark.parametrize("bits", ALL_BITS)
def test_zero_stays_zero(dtype, symmetric, bits):
    x = torch.cat([random_groups(200, 32).to(dtype), adversarial_groups(180, 32, bits, dtype)])
    x[:, 5], x[:, 9] = 0.0, -0.0
    assert same_bits(fake_quantize(x, Spec(bits, 32, symmetric))[:, [5, 9]], torch.zeros(len(x), 2, dtype=dtype)).all()


@dtypes
@modes
@pytest.mark.parametrize("bits", ALL_BITS)
def test_order_is_kept(dtype, symmetric, bits):
    x = torch.cat([random_groups(200, 32).to(dtype), adversarial_groups(180, 32, bits, dtype)])
    y = fake_quantize(x.sort(-1).values, Spec(bits, 32, symmetric))
    assert (y.diff(dim=-1) >= 0).all()
    assert (fake_quantize(x, Spec(bits, 32, symmetric)).diff(dim=-1) < 0).any(), "unsorted values stay unsorted"


@dtypes
@pytest.mark.parametrize("bits", ALL_BITS)
def test_symmetric_is_idempotent(dtype, bits):
    once = fake_quantize(random_groups(2000, 32).to(dtype), Spec(bits, 32, symmetric=True))
    assert same_bits(fake_quantize(once, Spec(bits, 32, symmetric=True)), once).all()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_asymmetric_float32_codes_are_idempotent(bits):
    """The codes; the scale is computed from the rounded ends of the range and may move by their rounding."""
    x = random_groups(2000, 32)
    first = quantize(x, Spec(bits, 32))
    again = quantize(fake_quantize(x, Spec(bits, 32)), Spec(bits, 32))
    assert again.codes.equal(first.codes)
    assert again.zero_point.equal(first.zero_point)
    # Both ends, their difference and the quotient are each rounded once; the ends are at most the range.
    assert ((again.scale - first.scale).abs() <= 4 * unit_roundoff(torch.float32) * first.scale).all()


def test_asymmetric_16_bit_is_not_idempotent():
    """A scale of 8 binary digits moves the ends of the range by up to half a step: never quantize cached rows again."""
    x = random_groups(2000, 32).bfloat16()
    first = quantize(x, Spec(8, 32))
    again = quantize(fake_quantize(x, Spec(8, 32)), Spec(8, 32))
    assert (again.codes != first.codes).any()


@dtypes
@modes
@pytest.mark.parametrize(("length", "group_size"), [(172, 32), (100, 128), (129, 128), (33, 32)])
def test_short_last_group_equals_padding(dtype, symmetric, length, group_size):
    x = random_groups(50, length).to(dtype)
    padded = torch.nn.functional.pad(x, (0, -length % group_size))
    for bits in (8, 4, 3, 2):
        spec = Spec(bits, group_size, symmetric)
        short, full = quantize(x, spec), quantize(padded, spec)
        assert short.codes.equal(full.codes[:, :length])
        assert short.scale.equal(full.scale)
        assert symmetric or short.zero_point.equal(full.zero_point)
        assert same_bits(fake_quantize(x, spec), fake_quantize(padded, spec)[:, :length]).all()


@pytest.mark.parametrize("paper_exact", [False, True])
@modes
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_value_spoils_its_group_and_no_other(value, symmetric, paper_exact):
    x = random_groups(4, 96)
    broken = x.clone()
    broken[2, 40] = value
    spec = Spec(4, 32, symmetric, paper_exact)
    codes, scale, zero_point = quantize(broken, spec)
    assert scale.isfinite().logical_not().nonzero().tolist() == [[2, 1]]
    others = torch.ones(4, 3, dtype=torch.bool)
    others[2, 1] = False
    for result in (fake_quantize(broken, spec), dequantize(codes, scale, zero_point, spec)):
        result = result.reshape(4, 3, 32)
        assert result[2, 1].isfinite().logical_not().all()
        assert same_bits(result[others], fake_quantize(x, spec).reshape(4, 3, 32)[others]).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_group_that_is_not_finite_means_nan(value, symmetric):
    """Not an infinity: attention takes a key of -inf for one that is not seen, and would drop it."""
    x = torch.randn(2, 64)
    x[1, 40] = value
    spec = Spec(8, 32, symmetric)
    codes, scale, zero_point = quantize(x, spec)
    for y in (fake_quantize(x, spec), dequantize(codes, scale, zero_point, spec)):
        assert y[1, 32:].isnan().all()
        assert y[0].isfinite().all()
        assert y[1, :32].isfinite().all()
    assert not scale[1, 1].isfinite()
    assert (codes[1, 32:] == (128 if zero_point is None else zero_point[1, 1])).all()


def test_default_is_more_accurate_in_bfloat16():
    """8 bits: the published arithmetic has about 10 % more error, the noise floor of the format excluded."""
    x = random_groups(20_000, 128).bfloat16()

    def error(paper_exact: bool) -> float:
        y = fake_quantize(x, Spec(8, 128, paper_exact=paper_exact)).double() - x.double()
        return (y / x.double().std(-1, keepdim=True)).square().mean().sqrt().item()

    assert error(paper_exact=False) < 0.95 * error(paper_exact=True)


@modes
@pytest.mark.parametrize("bits", ALL_BITS)
def test_float16_range_beyond_its_maximum_stays_finite(bits, symmetric):
    x = torch.tensor([[-40000.0, 1.0, 40000.0, 30000.0]]).half()
    y = fake_quantize(x, Spec(bits, 4, symmetric))
    assert y.isfinite().all()
    assert (y.double() - x.double()).abs().max() <= 80000 / (2**bits - 2) / 2 + 80000 * 2**-10


@modes
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_largest_float16_stays_finite(bits, symmetric):
    assert fake_quantize(torch.tensor([[0.0, 65504.0]]).half(), Spec(bits, 2, symmetric)).isfinite().all()


# What holds for both


@settings(max_examples=300, deadline=None)
@given(
    bits=st.sampled_from(ALL_BITS),
    dtype=st.sampled_from([*DTYPES, torch.float64]),
    symmetric=st.booleans(),
    paper_exact=st.booleans(),
    group_size=st.sampled_from([-1, 0, 1, 8, 32, 128]),
    shape=st.tuples(st.integers(0, 3), st.integers(1, 5), st.sampled_from([1, 8, 33, 64, 128, 172, 384])),
    seed=st.integers(0, 2**32),
)
def test_codes_mean_the_simulated_values(bits, dtype, symmetric, paper_exact, group_size, shape, seed):
    """dequantize(quantize(x)) has the bits of fake_quantize(x), with any leading shape."""
    paper_exact = paper_exact and (group_size <= 0 or shape[-1] % group_size == 0)
    if group_size == 0:
        shape = (shape[0] or 1, *shape[1:])
    spec = Spec(bits, group_size, symmetric, paper_exact)
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=random) * 10 ** torch.randn(*shape[:-1], 1, generator=random)
    x = (x + torch.randint(-1, 2, (*shape[:-1], 1), generator=random) * 3).to(dtype)
    codes, scale, zero_point = quantize(x, spec)
    assert (codes.shape, codes.dtype, scale.dtype) == (x.shape, torch.uint8, dtype)
    assert (zero_point is None) == symmetric
    assert (codes.int() < 2**bits).all()
    y = fake_quantize(x, spec)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    assert same_bits(dequantize(codes, scale, zero_point, spec), y).all()


@modes
def test_whole_matrix_is_one_group(symmetric):
    """Of each expert, where there are several."""
    x = random_groups(3 * 5, 16).reshape(3, 5, 16)
    codes, scale, zero_point = quantize(x, Spec(4, 0, symmetric))
    assert scale.shape == (3, 1, 1)
    for expert in range(3):
        flat = quantize(x[expert].reshape(1, -1), Spec(4, -1, symmetric))
        assert codes[expert].flatten().equal(flat.codes[0])
        assert scale[expert].item() == flat.scale.item()
        assert symmetric or zero_point[expert].item() == flat.zero_point.item()


def test_dequantize_into_another_dtype_rounds_once():
    x = random_groups(200, 128)
    spec = Spec(4)
    quantized = quantize(x, spec)
    assert dequantize(*quantized, spec, torch.bfloat16).equal(dequantize(*quantized, spec).bfloat16())


def test_a_value_beyond_the_wanted_dtype_is_not_hidden():
    spec = Spec(8, 2)
    quantized = quantize(torch.tensor([[0.0, 1e6]]), spec)
    assert dequantize(*quantized, spec, torch.float16).tolist() == [[0.0, math.inf]]


def test_integers_are_refused():
    with pytest.raises(SchemeError, match=r"cannot quantize a tensor of torch\.int64: give a floating-point tensor"):
        quantize(torch.arange(128), Spec(4))
