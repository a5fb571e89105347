"""Quantizing and packing in one launch: the bits of torch, whatever the numbers, the shapes and the strides are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from same_tensors import same

pytest.importorskip("triton", reason="needs Triton")

import triton
import triton.language as tl

from qllm_hf.kv_rows import RowFormat
from qllm_hf.packed import encode_reference
from qllm_hf.scheme import Scheme, Spec
from qllm_hf.uniform import quantize
from qllm_kernels.gpu.encode import append, encode, encode_rows_into, refuses
from qllm_kernels.gpu.quantize import codes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # as it should be


def numbers(shape, dtype, seed=0):
    """[11 ways, *shape] of that dtype: ordinary numbers, and those at which arithmetic goes wrong."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    info = torch.finfo(dtype)
    steps = torch.randint(-255, 256, shape, generator=generator).double()
    steps[..., 0], steps[..., -1] = -255, 255  # at 8 bits the scale is 2, so that the odd ones lie half-way
    outlier = normal.clone()
    outlier[..., shape[-1] // 2] = info.max / 3
    found = [
        normal,
        normal.abs() + 5,
        torch.full(shape, -3.3, dtype=torch.float64),
        torch.zeros(shape) * -1,
        normal * info.smallest_normal / 3,
        normal * 1e-6,
        (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1) * info.max,
        (steps / 255) * info.max,
        normal * torch.exp(normal * 8),
        steps * (1 + torch.randint(-2, 3, shape, generator=generator) * info.eps),
        outlier,
    ]
    return torch.stack([each.clamp(info.min, info.max).to(dtype) for each in found])


def options(spec):
    return {"bits": spec.bits, "group_size": spec.group_size, "symmetric": spec.symmetric}


def encoded_alike(x, spec, scale_dtype=None, run=encode):
    """Whether a tensor becomes what torch makes of it."""
    wanted = encode_reference(x, spec, scale_dtype)
    found = run(x, **options(spec), scale_dtype=scale_dtype)
    return all(same(*pair) for pair in zip(found, wanted[:3], strict=True))


def rows_alike(x, spec, run=encode_rows_into):
    """Whether keys become the rows that torch makes of them, and nothing else is written."""
    wanted = RowFormat(spec, x.shape[-1], x.dtype).encode_reference(x)
    batch, heads, tokens, words = wanted.shape
    cache = torch.full((batch, heads, tokens + 3, words + 1), -21846, dtype=torch.int16)
    rows = cache[:, :, 2 : 2 + tokens, :-1]
    run(x, rows, **options(spec))
    written = rows.clone()
    rows.fill_(-21846)
    return written.equal(wanted) and bool((cache == -21846).all())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    ("group_size", "length"),
    [(32, 128), (64, 200), (128, 256), (256, 300), (-1, 200), (-1, 384), (32, 96), (128, 50)],
)
def test_tensors(bits, group_size, length):
    """Groups within a block, a block, several blocks, and a whole row, and a short last one, of all types in turn."""
    for number, symmetric in enumerate((False, True)):
        dtype, scale_dtype = DTYPES[(bits + number) % 3], DTYPES[(bits // 3 + length // 8) % 3]
        x = numbers((2, length), dtype, bits)
        assert encoded_alike(x, Spec(bits, group_size, symmetric), scale_dtype), (dtype, scale_dtype, symmetric)
        if number == bits % 2:
            assert encoded_alike(x, Spec(bits, group_size, symmetric)), (dtype, symmetric)


@pytest.mark.parametrize("head_dim", [40, 64, 80, 96, 100, 112, 128, 160, 192, 256])
def test_rows(head_dim):
    """Heads of all sizes, in the groups that a scheme makes of them; keys come as [B, T, H, D] transposed."""
    for number, bits in enumerate(range(2, 9)):
        dtype, wanted = DTYPES[(number + head_dim // 4) % 3], (128, 64, 32, -1)[(number + head_dim // 32) % 4]
        spec = Scheme(kv=bits, kv_group_size=wanted, kv_symmetric=number % 3 == 2).kv_spec(head_dim)
        x = numbers((2, head_dim), dtype, number)[None].transpose(1, 2)
        assert rows_alike(x, spec), (spec, dtype)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 8),
    group_size=st.sampled_from([16, 24, 32, 48, 64, 80, 96, 128, 256, -1]),
    symmetric=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    scale_dtype=st.sampled_from(DTYPES),
    outer=st.lists(st.integers(1, 3), max_size=2),
    length=st.integers(1, 300),
    way=st.integers(0, 10),
    seed=st.integers(0, 2**32),
)
def test_any_shape_and_group(bits, group_size, symmetric, dtype, scale_dtype, outer, length, way, seed):
    x = numbers((*outer, length), dtype, seed)[way]
    spec = Spec(bits, group_size, symmetric)
    assert encoded_alike(x, spec, scale_dtype)
    assert rows_alike(x.reshape(1, 1, -1, length), spec)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    values=st.lists(st.floats(-65504, 65504, width=32), min_size=32, max_size=32),
    dtype=st.sampled_from(DTYPES),
)
def test_any_numbers(bits, symmetric, values, dtype):
    assert encoded_alike(torch.tensor([values]).to(dtype), Spec(bits, 32, symmetric))


@pytest.mark.parametrize(("bits", "symmetric"), [(3, True), (5, False), (6, True), (7, False), (8, False), (8, True)])
def test_codes_that_would_mean_more_than_the_largest_float16(bits, symmetric):
    generator, spec = torch.Generator().manual_seed(bits), Spec(bits, -1, symmetric)
    ends = torch.stack([-torch.linspace(60000, 65504, 40), torch.full((40,), 65504.0)], -1)
    x = torch.cat([ends, torch.randn(40, 30, generator=generator).clamp(-3, 3) * 20000], -1).half()
    x = torch.cat([x, -x])
    codes, scale, zero_point = quantize(x, spec)
    zero = 2 ** (bits - 1) if symmetric else zero_point.float()
    free = (torch.round(x.float() / scale.float()) + zero).clamp(0, 2**bits - 1)
    assert not free.equal(codes.float()), "there are some"
    assert encoded_alike(x, spec)


@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("symmetric", [False, True])
def test_numbers_that_are_not_finite(value, symmetric):
    """The scale is as torch has it, other groups know nothing of it, and nothing finite comes out of the group."""
    for dtype, bits, length in [(torch.float32, 3, 96), (torch.bfloat16, 4, 128), (torch.float16, 8, 96)]:
        spec = Spec(bits, 32, symmetric)
        x = torch.randn(2, 3, length).to(dtype)
        x[1, 1, 35] = value
        wanted = encode_reference(x, spec)
        words, scale, zero_point = encode(x, **options(spec))
        assert same(scale, wanted.scale)
        packed = wanted._replace(words=words, zero_point=zero_point)
        found = packed.decode()
        assert not found[1, 1, 32:64].isfinite().any()
        assert (packed.codes()[1, 1, 32:64] == (2 ** (bits - 1) if symmetric else 0)).all(), "the zero point"
        x[1, 1, 32:64] = 0
        found[1, 1, 32:64] = 0
        rest = encode_reference(x, spec).decode()
        rest[1, 1, 32:64] = 0
        assert same(found, rest)
        assert symmetric or same(zero_point, wanted.zero_point)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_range_that_overflows(dtype):
    """All numbers are finite and the scale is not: the codes are those of torch then, too."""
    x = torch.tensor([-3e38, 1.0, 3e38, 0.5] * 16).to(dtype)[None]
    assert encoded_alike(x, Spec(4, 32))
    assert encoded_alike(x, Spec(4, 32), torch.float16)
    assert encoded_alike(x, Spec(4, 32, symmetric=True), torch.float16)


def significands(bits):
    return torch.arange(2**bits, 2 ** (bits + 1), dtype=torch.float64)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bits", [7, 10], ids=["bfloat16", "float16"])
def test_product_with_the_inverse_rounds_as_the_quotient(bits, fused):
    """All significands of x and scale: sums of float32, in float64 where they are one fused multiply-add."""
    x = significands(bits)
    for scale in significands(bits)[:, None].split(128):
        inverse = 1 / scale.float()
        for exponent in range(-2, 9):
            moved = x * 2.0**exponent
            near = (moved * inverse.double() + 3072).float() if fused else moved.float() * inverse + 3072
            found = (near + (12582912.0 - 3072.0)) - 12582912.0
            assert found.equal(torch.round(moved.float() / scale.float()))


def next_to_half_way(dtype):
    """x and scale float32 [rows, 64] with values of dtype: quotients around k + 1/2, all significands of a scale."""
    eps = torch.finfo(dtype).eps
    scale = 1 + torch.arange(0, 1, eps, dtype=torch.float64)[:, None]
    half = torch.arange(-16, 16).double() + 0.5
    x = (half * scale).to(dtype).double()
    x = torch.cat([x, x * (1 + eps)], -1).to(dtype)
    return x.float(), scale.expand_as(x).float()


@triton.jit
def _codes_by(x, scale, out, SIZE: tl.constexpr, METHOD: tl.constexpr):
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    number, divisor = tl.load(x + place), tl.load(scale + place)
    zero, last = tl.full((SIZE,), 128, tl.int32), tl.full((SIZE,), 255, tl.int32)
    inverse = tl.div_rn(tl.full((SIZE,), 1.0, tl.float32), divisor)
    if METHOD == "division":
        found = codes(number, divisor, zero, last - 255, last, False)
    elif METHOD == "product":
        found = codes(number, inverse, zero, last - 255, last, True)
    else:  # what is wrong: nothing brings half-way cases back
        moved = number * inverse + 12582912.0
        found = tl.minimum(tl.maximum(moved.to(tl.int32, bitcast=True) - 0x4B400000 + zero, 0), 255)
    tl.store(out + place, found)


@pytest.mark.parametrize("method", ["division", "product", "naive product"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_quotients_next_to_half_way(dtype, method):
    x, scale = next_to_half_way(dtype)
    out = torch.empty(x.shape, dtype=torch.int32)
    _codes_by[(x.numel() // 1024,)](x, scale, out, SIZE=1024, METHOD=method)
    wanted = (torch.round(x / scale) + 128).clamp(0, 255).int()
    assert out.equal(wanted) == (method != "naive product")


def test_comparisons_notice_a_single_bit():
    x, spec = torch.randn(1, 2, 3, 64).bfloat16(), Spec(4, 32)
    assert encoded_alike(x, spec) and rows_alike(x, spec)

    def other_word(*arguments, **named):
        words, scale, zero_point = encode(*arguments, **named)
        words[0, 1, 2, 5] ^= 64
        return words, scale, zero_point

    def other_row(x, rows, **named):
        encode_rows_into(x, rows, **named)
        rows[0, 0, 1, -1] ^= 1

    def next_to_the_rows(x, rows, **named):
        encode_rows_into(x, rows, **named)
        rows.as_strided(rows.shape, rows.stride(), rows.storage_offset() + 1)[..., -1] = 0

    assert not encoded_alike(x, spec, run=other_word)
    assert not rows_alike(x, spec, run=other_row)
    assert not rows_alike(x, spec, run=next_to_the_rows)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x[:, 1:3],
        lambda x: x[..., 3:150],
        lambda x: x[::2, :, ::2],
        lambda x: x[:1].expand(3, -1, -1, -1),
        lambda x: x[0, 0, 0],
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :, None].expand(-1, -1, 2, -1, -1),
        lambda x: x[:0],
    ],
    ids=["transposed", "part", "columns", "every second", "expanded", "one row", "not contiguous", "five", "none"],
)
def test_tensors_that_are_views(view):
    assert encoded_alike(view(torch.randn(3, 4, 5, 200).bfloat16()), Spec(4, 64))


def static_cache(row_format, batch=2, heads=2, capacity=9):
    return torch.full((batch, heads, capacity, row_format.words), -21846, dtype=torch.int16)


@pytest.mark.parametrize(
    ("bits", "key_dim", "value_dim"),
    [(2, 128, 192), (3, 64, 64), (4, 128, 256), (5, 80, 96), (8, 192, 128), (8, 64, 64)],
)
def test_append(bits, key_dim, value_dim):
    """Both go where `index_copy_` puts them, as in transformers' StaticLayer, or follow the first position."""
    scheme = Scheme(kv=bits, kv_group_size=64)
    dtype = DTYPES[bits % 3]
    states = [torch.randn(2, 4, 2, dim).to(dtype).transpose(1, 2) for dim in (key_dim, value_dim)]
    formats = [RowFormat(scheme.kv_spec(x.shape[-1]), x.shape[-1], dtype) for x in states]
    wanted = [static_cache(each) for each in formats]
    start = torch.tensor(4)
    positions = torch.arange(4) + start
    for rows, row_format, x in zip(wanted, formats, states, strict=True):
        rows.index_copy_(2, positions, row_format.encode_reference(x))
    for given_as in (positions, start.int(), positions.repeat(2, 1)):
        found = [static_cache(each) for each in formats]
        append_to(found, states, given_as, scheme)
        assert all(map(torch.equal, found, wanted))


def append_to(caches, states, positions, scheme):
    sizes = [scheme.kv_spec(x.shape[-1]).group_size for x in states]
    append(
        *states,
        *caches,
        positions,
        bits=scheme.kv,
        key_group_size=sizes[0],
        value_group_size=sizes[1],
        symmetric=scheme.kv_symmetric,
    )


def test_append_reads_positions_when_it_runs():
    """One token after the other, with one tensor of positions that counts: what a CUDA graph replays."""
    scheme, position = Scheme(kv=4, kv_symmetric=True), torch.tensor([0])
    row_format = RowFormat(scheme.kv_spec(64), 64, torch.float16)
    x = torch.randn(2, 2, 9, 64).half()
    caches = [static_cache(row_format), static_cache(row_format)]
    for token in x.split(1, 2):
        append_to(caches, (token, -token), position, scheme)
        position += 1
    assert caches[0].equal(row_format.encode_reference(x))
    assert caches[1].equal(row_format.encode_reference(-x))


def test_append_in_any_order_and_for_each_sequence():
    scheme = Scheme(kv=3)
    row_format, x = RowFormat(scheme.kv_spec(64), 64, torch.bfloat16), torch.randn(2, 2, 3, 64).bfloat16()
    encoded = row_format.encode_reference(x)
    positions = torch.tensor([[7, 0, -1], [2, 4, -9]])
    wanted = static_cache(row_format)
    for sequence in range(2):
        wanted[sequence][:, positions[sequence]] = encoded[sequence]
    caches = [static_cache(row_format), static_cache(row_format)]
    append_to(caches, (x, x), positions, scheme)
    assert caches[0].equal(wanted) and caches[1].equal(wanted)


def test_append_writes_nothing_outside_the_cache():
    scheme = Scheme(kv=4)
    row_format, x = RowFormat(scheme.kv_spec(64), 64, torch.float16), torch.randn(2, 2, 4, 64).half()
    larger = static_cache(row_format, capacity=15)
    wanted = larger.clone()
    wanted[:, :, 8] = row_format.encode_reference(x)[:, :, 1]
    caches = [larger[:, :, 3:12], static_cache(row_format)]
    append_to(caches, (x, x), torch.tensor([9, 5, -10, 2**40]), scheme)
    assert larger.equal(wanted)
    append_to(caches, (x[:, :, :0], x[:, :, :0]), torch.tensor([], dtype=torch.int64), scheme)
    assert larger.equal(wanted)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bits": 1}, "1 bits"),
        ({"bits": 9}, "9 bits"),
        ({"group_size": 0}, "group_size=0"),
        ({"group_size": -2}, "group_size=-2"),
        ({"dtype": torch.float64}, "float64"),
        ({"scale_dtype": torch.float8_e4m3fn}, "float8_e4m3fn"),
        ({"length": 0}, "without numbers"),
        ({"group_size": 100, "length": 4096}, "groups of 100 in vectors of 4096"),
        ({"group_size": 4}, "groups of 4 in"),
    ],
    ids=str,
)
def test_refuses(change, reason):
    request = {"bits": 4, "group_size": 128, "length": 128, "dtype": torch.bfloat16}
    assert refuses(**request) is None
    assert reason in refuses(**request | change)


def test_tensors_that_do_not_fit():
    x, named = torch.randn(1, 2, 3, 64), {"bits": 4, "group_size": 64, "symmetric": False}
    rows = torch.empty(1, 2, 3, 19, dtype=torch.int16)
    encode_rows_into(x, rows, **named)
    for wrong in (rows[..., :-1], rows.int(), rows[:, :1], rows[:, :, :2], rows[0]):
        with pytest.raises(ValueError):
            encode_rows_into(x, wrong, **named)
    with pytest.raises(ValueError, match="contiguous"):
        encode_rows_into(x.transpose(2, 3).contiguous().transpose(2, 3), rows, **named)
    with pytest.raises(ValueError, match="9 bits"):
        encode(x, bits=9, group_size=64, symmetric=True)
    scheme = Scheme(kv=4)
    for positions in (torch.zeros(3), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="positions"):
            append_to((rows, rows), (x, x), positions, scheme)
    with pytest.raises(ValueError, match="do not fit each other"):
        append_to((rows, rows[:, :, :2]), (x, x), torch.arange(3), scheme)
