"""Products of integers: no rounding within a group, and float32 over groups."""

import functools
import itertools

import pytest
import torch

pytest.importorskip("triton")

from qllm_hf.ops import integer, reference
from qllm_hf.packed import encode_reference
from qllm_hf.scheme import PER_ROW, Spec
from qllm_hf.uniform import quantize
from qllm_kernels.gpu import integer_tiles, tokens, unpack_integers
from qllm_kernels.gpu import integers as kernels

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SMALL = kernels.Config(BLOCK_N=16, BLOCK_M=16, SPLITS=1, num_warps=1, num_stages=1)
# Few tokens lose the zero points of weights after the products, many before.
FEW_AND_MANY = (SMALL, SMALL._replace(BLOCK_M=64))


def numbers(shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@functools.cache
def weight_of(outputs, length, bits, group_size=128, symmetric=False, dtype=torch.bfloat16, shift=0.0):
    return encode_reference(numbers((outputs, length), 1, dtype) + shift, Spec(bits, group_size, symmetric))


def linear(x, weight, activation, bias=None, config=SMALL):
    words, scale, zero_point, spec, length = weight
    return kernels.linear(
        x,
        words,
        scale,
        zero_point,
        bits=spec.bits,
        group_size=spec.group_size,
        length=length,
        activation_bits=activation.bits,
        activation_symmetric=activation.symmetric,
        bias=bias,
        config=config,
    )


def exact(x, weight, activation, bias=None):
    """What codes, scales and zero points mean, in float64, and the sum of the magnitudes of all groups."""
    found = quantize(x.reshape(-1, x.shape[-1]), activation)
    x_codes = integer._centered(found.codes, found.zero_point, activation)
    w_codes = integer._centered(weight.codes(), weight.zero_point, weight.spec)
    grouped = [integer.group(codes, weight.spec) for codes in (x_codes, w_codes)]
    sums = torch.einsum("tgi,ogi->tog", *grouped) * weight.scale.double() * found.scale.double()[..., None]
    y = sums.sum(-1) + (0 if bias is None else bias.double())
    shape = (*x.shape[:-1], len(weight.words))
    return y.reshape(shape), sums.abs().sum(-1).reshape(shape)


def check(x, weight, activation, bias=None, config=SMALL):
    y = linear(x, weight, activation, bias, config)
    expected, magnitude = exact(x, weight, activation, bias)
    assert y.dtype == x.dtype and y.shape == expected.shape
    groups = weight.scale.shape[-1]
    ulp = torch.finfo(x.dtype).eps
    allowed = (groups + 4) * 2**-24 * magnitude + 0.501 * ulp * expected.abs() + torch.finfo(x.dtype).tiny
    excess = ((y.double() - expected).abs() / allowed).max().item()
    assert excess <= 1, f"{excess} times what float32 allows"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", (4, 8))
def test_what_is_not_finite_stays_so(bits, dtype):
    x = numbers((4, 128), dtype=dtype)
    x[1, 5], x[2, 7] = torch.nan, torch.inf
    for symmetric in (False, True):
        y = linear(x, weight_of(16, 128, 4), Spec(bits, PER_ROW, symmetric))
        assert torch.equal(y.isfinite().all(-1), torch.tensor([True, False, False, True]))
        assert torch.equal(y.isnan().all(-1), torch.tensor([False, True, True, False]))


SYMMETRY = [(a, w) for a in (False, True) for w in (False, True)]


@pytest.mark.parametrize("activation_bits", (4, 8))
@pytest.mark.parametrize("bits", range(2, 9))
def test_all_bits(bits, activation_bits):
    """Few and many tokens in turn: those of 4 bits meet what those of 8 do not."""
    for number, (a_symmetric, w_symmetric) in enumerate(SYMMETRY, start=activation_bits // 4):
        weight = weight_of(16, 256, bits, symmetric=w_symmetric)
        spec = Spec(activation_bits, PER_ROW, a_symmetric)
        check(numbers((2, 256)), weight, spec, config=FEW_AND_MANY[number % 2])


@pytest.mark.parametrize("group_size", (32, 64, 128, 256, -1))
@pytest.mark.parametrize("bits", (3, 4, 7, 8))
def test_all_groups(bits, group_size):
    """Few and many tokens in turn: what one group size leaves out, another has."""
    for number, (a_symmetric, w_symmetric) in enumerate(SYMMETRY, start=group_size // 32 % 3 + bits // 4):
        weight = weight_of(16, 256, bits, group_size, w_symmetric)
        check(numbers((2, 256)), weight, Spec(8, PER_ROW, a_symmetric), config=FEW_AND_MANY[number % 2])


@pytest.mark.parametrize("group_size", (32, 64, 128, -1))
@pytest.mark.parametrize("length", (1, 100, 129, 200, 287, 383))
def test_short_last_blocks(length, group_size):
    for bits, config in ((2, FEW_AND_MANY[0]), (5, FEW_AND_MANY[1]), (8, FEW_AND_MANY[length % 2])):
        weight = weight_of(16, length, bits, group_size)
        check(numbers((2, length)), weight, Spec(8, PER_ROW, False), config=config)


@pytest.mark.parametrize("bits", range(2, 9))
def test_short_last_blocks_of_all_bits(bits):
    for config, symmetric in itertools.product(FEW_AND_MANY, (False, True)):
        weight = weight_of(16, 217, bits, symmetric=symmetric)
        check(numbers((2, 217)), weight, Spec(8, PER_ROW, symmetric), config=config)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_types_with_bias(dtype):
    x, bias = numbers((2, 3, 256), dtype=dtype), numbers(20, 2, dtype)
    for scale_dtype in DTYPES:
        check(x, weight_of(20, 256, 4, dtype=scale_dtype), Spec(8, PER_ROW, False), bias)


@pytest.mark.parametrize(("count", "outputs"), [(1, 1), (15, 17), (16, 16), (33, 31), (17, 50)])
def test_edges_of_tiles(count, outputs):
    check(numbers((count, 128)), weight_of(outputs, 128, 4), Spec(8, PER_ROW, False))


def test_more_tiles_than_lie_side_by_side():
    config = SMALL._replace(BLOCK_M=8)
    check(numbers((8 * 17, 32)), weight_of(20, 32, 8, -1), Spec(8, PER_ROW, True), config=config)


@pytest.mark.parametrize("group_size", (64, 128, -1))
@pytest.mark.parametrize("bits", (4, 8))
@pytest.mark.parametrize(("length", "splits"), ((512, 4), (640, 3), (600, 2), (600, 3)))
def test_splits(length, splits, bits, group_size):
    weight = weight_of(20, length, bits, group_size)
    check(numbers((3, length)), weight, Spec(8, PER_ROW, False), numbers(20, 2), SMALL._replace(SPLITS=splits))


def test_other_tiles():
    weight = weight_of(40, 256, 4)
    for block_m, block_n in ((8, 64), (64, 16), (32, 32)):
        config = SMALL._replace(BLOCK_N=block_n, BLOCK_M=block_m)
        check(numbers((20, 256)), weight, Spec(8, PER_ROW, False), config=config)


@pytest.mark.parametrize("bits", (4, 8))
@pytest.mark.parametrize("group_size", (128, -1))
def test_the_largest_sums(bits, group_size):
    """All numbers on one side, so that every product has the same sign and zero points are at their ends."""
    for x_sign in (1, -1):
        for shift in (9.0, -9.0):
            x = x_sign * (numbers((2, 384)).abs() + 9)
            check(x, weight_of(16, 384, bits, group_size, shift=shift), Spec(8, PER_ROW, False))


def test_a_row_whose_sum_does_not_fit_32_bits(monkeypatch):
    """It gets its scale block by block. Here every row does, to see that the sums are the same."""
    assert kernels._span(8, -1, 33000, 8) > 128 and kernels._span(8, -1, 33100, 8) == 128
    assert kernels._span(4, -1, 33100, 8) > 128
    monkeypatch.setattr(kernels, "_span", lambda *_: 128)
    check(numbers((2, 300)), weight_of(16, 300, 8, -1), Spec(8, PER_ROW, False))


def test_agrees_with_the_twins():
    x, weight, activation = numbers((5, 256)), weight_of(20, 256, 4), Spec(8, PER_ROW)
    ours = linear(x, weight, activation)
    assert torch.allclose(ours, integer.linear(x, weight, None, activation), rtol=1e-5, atol=1e-5)
    assert torch.allclose(ours, reference.linear(x, weight, None, activation), rtol=1e-4, atol=1e-4)


def test_tokens_are_quantized_once_for_several_weights():
    """For weights of less than 8 bits with or without sums; those over other spans are of no use."""
    x, activation = numbers((5, 256), dtype=torch.bfloat16), Spec(8, PER_ROW)
    found = [tokens.quantize_tokens(x, bits=8, symmetric=False, sums_over=over) for over in (0, 128, 64)]
    for weight in (weight_of(20, 256, 4), weight_of(12, 256, 4)):
        for each in found:
            y = kernels.multiply(each, *weight[:3], bits=4, group_size=128, config=SMALL)
            assert torch.equal(y, linear(x, weight, activation))


def test_nothing_to_multiply():
    weight = weight_of(16, 128, 4)
    assert linear(torch.empty(0, 128), weight, Spec(8, PER_ROW)).shape == (0, 16)
    assert linear(torch.empty(2, 0, 128), weight, Spec(8, PER_ROW)).shape == (2, 0, 16)
    with pytest.raises(ValueError, match="no elements"):
        kernels.multiply(
            tokens.quantize_tokens(torch.empty(2, 0), bits=8, symmetric=True), *weight[:3], bits=4, group_size=128
        )


def test_rows_that_are_not_contiguous():
    x, weight = numbers((256, 6)).T, weight_of(16, 256, 4)
    assert torch.equal(linear(x, weight, Spec(8, PER_ROW)), linear(x.contiguous(), weight, Spec(8, PER_ROW)))
    assert torch.equal(linear(x[::2], weight, Spec(8, PER_ROW)), linear(x[::2].contiguous(), weight, Spec(8, PER_ROW)))


# What is refused


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bits": 1}, "weights of 1 bits"),
        ({"activation_bits": 16}, "activations of 16 bits"),
        ({"group_size": 96}, "groups of 96"),
        ({"group_size": 0}, "groups of 0"),
        ({"dtype": torch.float64}, "activations in float64"),
        ({"scale_dtype": torch.float64}, "scales in float64"),
        ({"words": torch.zeros(1, 2, 32, dtype=torch.int16)}, "takes int16"),
        ({"words": torch.zeros(2, 32, dtype=torch.uint8)}, "takes int16"),
    ],
)
def test_refusals(change, reason):
    request = {"words": torch.zeros(2, 32, dtype=torch.int16), "bits": 4, "group_size": 128, "activation_bits": 8}
    request |= {"dtype": torch.bfloat16, "scale_dtype": torch.bfloat16} | change
    assert reason in kernels.refuses(request.pop("words"), **request)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"BLOCK_M": 0}, "BLOCK_M=0"),
        ({"BLOCK_N": 48}, "tiles of 48 outputs and 16 tokens"),
        ({"num_warps": 3}, "num_warps=3"),
        ({"SPLITS": 3}, "there are 2 whole blocks"),
        ({"num_stages": 2.0}, "num_stages=2.0"),
    ],
)
def test_faults_of_a_config(change, reason):
    assert reason in kernels.config_fault(SMALL._replace(**change), 256)
    with pytest.raises(ValueError, match=reason):
        linear(numbers((1, 256)), weight_of(16, 256, 4), Spec(8, PER_ROW), config=SMALL._replace(**change))


@pytest.mark.parametrize("length", (1, 128, 4096, 11008, 28672))
@pytest.mark.parametrize("count", (0, 1, 8, 17, 64, 2048))
@pytest.mark.parametrize("bits", (3, 4, 8))
def test_default_config_has_no_fault(bits, count, length):
    for group_size in (-1, 32, 128):
        config = kernels.default_config(count, 4096, length, bits, group_size)
        assert kernels.config_fault(config, length) is None


def test_shapes_that_do_not_fit():
    x, weight = numbers((2, 256)), weight_of(16, 256, 8)
    with pytest.raises(ValueError, match="take 64 words"):
        linear(x[:, :128], weight._replace(length=128), Spec(8, PER_ROW))
    with pytest.raises(ValueError, match="scales"):
        linear(x, weight._replace(scale=weight.scale[:3]), Spec(8, PER_ROW))
    with pytest.raises(ValueError, match="zero points"):
        linear(x, weight._replace(zero_point=weight.zero_point[:3]), Spec(8, PER_ROW))
    with pytest.raises(ValueError, match="without sums over 128"):
        kernels.multiply(tokens.quantize_tokens(x, bits=8, symmetric=False), *weight[:3], bits=8, group_size=128)


# Kernels made wrong on purpose

tl = integer_tiles.tl
_beside, _multiplied = unpack_integers._beside, integer_tiles._multiplied


def _one_too_many(*arguments):
    sums, w_sums = _multiplied(*arguments)
    return sums, w_sums + 1


@pytest.mark.parametrize(
    ("bits", "module", "name", "function"),
    [
        (4, integer_tiles, "_multiplied", _one_too_many),
        (4, integer_tiles, "_complement", lambda *_: tl.full((SMALL.BLOCK_N, 1), 120, tl.int8)),
        (4, integer_tiles, "_minus_zero", lambda *_: tl.full((SMALL.BLOCK_N, 1), -8, tl.int32)),
        (4, unpack_integers, "_beside", lambda a, b: _beside(b, a)),
        (4, integer_tiles, "_index", lambda *_: 0),
        (3, unpack_integers, "_bit_field", lambda words, column: tl.load(words + column % 8)),
        (8, integer_tiles, "int8_bytes", lambda data: data),
        (8, tokens, "range_bits", lambda x, _: (x.to(tl.uint32, bitcast=True), x.to(tl.int32, bitcast=True) + 2**16)),
    ],
)
def test_a_wrong_kernel_is_noticed(monkeypatch, bits, module, name, function):
    x, weight = numbers((2, 256)), weight_of(16, 256, bits, 64 if name == "_index" else 128)
    config = FEW_AND_MANY[name == "_complement"]
    check(x, weight, Spec(8, PER_ROW, False), config=config)
    monkeypatch.setattr(module, name, function)
    with pytest.raises(AssertionError, match="float32 allows"):
        check(x, weight, Spec(8, PER_ROW, False), config=config)
