"""Quantizing, packing and unpacking in compiled code: on every instruction set, the bits that torch gives."""

import itertools

import pytest
import torch
from exactness import DTYPES
from hypothesis import given, settings
from hypothesis import strategies as st
from same_tensors import same

from qllm_hf import native
from qllm_hf.kv_rows import RowFormat
from qllm_hf.packed import PackedTensor, decode_reference, encode_reference
from qllm_hf.scheme import Spec
from qllm_hf.uniform import fake_quantize, quantize

LEVELS = ("avx512_vnni", "avx2_vnni", "avx2", "portable")
GROUPS = (1, 7, 8, 32, 48, 64, 80, 128, 256, -1)
SHAPES = ((5, 128), (3, 300), (2, 1333), (2, 3, 80), (1, 1), (4, 1, 3, 64))

pytestmark = pytest.mark.skipif(not native.is_there(), reason="the kernels are not built")


@pytest.fixture(params=LEVELS)
def level(request):
    """Runs the test once on each instruction set that is here."""
    library = native.cpu.library()
    if request.param not in library.levels:
        pytest.skip(f"{request.param} is not here")
    before = library.level
    library.set_level(request.param)
    yield request.param
    library.set_level(before)


def inputs(shape, dtype, seed=0):
    """{name: numbers of that shape and dtype}: ordinary ones, and those at which arithmetic goes wrong."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=generator)
    info = torch.finfo(dtype)
    steps = torch.randint(-255, 256, shape, generator=generator).double()
    steps[..., 0], steps[..., -1] = -255, 255  # at 8 bits the scale is 2, so that the odd ones lie half-way
    found = {
        "normal": normal,
        "one-sided": normal.abs() + 5,
        "negative": -normal.abs() - 2,
        "constant": torch.full(shape, 3.3),
        "zeros": torch.zeros(shape) * -1,
        "denormals": normal.double() * info.smallest_normal / 3,
        "below the smallest range": normal * 1e-6,
        "huge": (torch.rand(shape, generator=generator).double() * 2 - 1) * info.max,
        "far apart": normal.double() * torch.exp(normal.double() * 8),
        "half-way": steps,
        "next to half-way": steps * (1 + torch.randint(-3, 4, shape, generator=generator) * info.eps),
    }
    return {name: x.clamp(info.min, info.max).to(dtype) for name, x in found.items()}


def packed_alike(x, spec, scale_dtype=None):
    """Whether the kernels took x and made of it what torch makes, and back."""
    scale_dtype = scale_dtype or x.dtype
    wanted = encode_reference(x, spec, scale_dtype)
    found = wanted._replace(
        words=torch.full_like(wanted.words, -1),
        scale=torch.full_like(wanted.scale, -1),
        zero_point=None if wanted.zero_point is None else torch.full_like(wanted.zero_point, 255),
    )
    took = native.encode_into(x, found.words, found.scale, found.zero_point, spec)
    return took and all(same(*pair) for pair in zip(found[:3], wanted[:3], strict=True))


def decoded_alike(packed, dtype):
    """Whether the kernels unpack to what torch unpacks to."""
    words, scale, zero_point, spec, length = packed
    found = native.decode(words, scale, zero_point, spec, length, dtype)
    return found is not None and same(found, decode_reference(packed, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", range(2, 9))
def test_packs_and_unpacks_as_torch_does(level, dtype, bits):
    cases = itertools.product(GROUPS, (False, True), SHAPES)
    for number, (group_size, symmetric, shape) in enumerate(cases):
        spec, scale_dtype, to = Spec(bits, group_size, symmetric), DTYPES[number % 3], DTYPES[number // 3 % 3]
        named = list(inputs(shape, dtype, number).items())
        for name, x in (named[0], named[number % len(named)]):
            assert packed_alike(x, spec, scale_dtype), (spec, shape, name, scale_dtype)
            assert decoded_alike(encode_reference(x, spec, scale_dtype), to), (spec, shape, name, to)


@settings(max_examples=150, deadline=None)
@given(
    spec=st.builds(Spec, st.integers(2, 8), st.integers(-1, 300).filter(bool), st.booleans(), st.just(False)),
    dtype=st.sampled_from(DTYPES),
    scale_dtype=st.sampled_from(DTYPES),
    outer=st.lists(st.integers(1, 4), max_size=5),
    length=st.integers(1, 700),
    kind=st.sampled_from(list(inputs((1,), torch.float32))),
    seed=st.integers(0, 2**32),
)
def test_any_shape_and_group(spec, dtype, scale_dtype, outer, length, kind, seed):
    x = inputs((*outer, length), dtype, seed)[kind]
    assert packed_alike(x, spec, scale_dtype)
    assert decoded_alike(encode_reference(x, spec, scale_dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_quotient_next_to_half_way_is_rounded_as_a_division(level, dtype):
    """x around (n + 1/2) scale for many scales: a product with the inverse would show, see the next test."""
    x = next_to_half_way(dtype)
    for bits in (8, 7, 4, 3):
        assert packed_alike(x, Spec(bits, 64))
        assert packed_alike(x, Spec(bits, 64, symmetric=True))


def next_to_half_way(dtype):
    """[rows, 64] whose first two elements fix the scale at 8 bits, and the rest is next to the middle of two codes."""
    generator = torch.Generator().manual_seed(1)
    ends = (1 + torch.rand(2000, 1, generator=generator)).to(dtype)
    scale = quantize(torch.cat([-ends, ends], -1), Spec(8, -1)).scale.double()
    middle = (torch.randint(-120, 120, (2000, 62), generator=generator) + 0.5) * scale
    nudge = 1 + torch.randint(-1, 2, middle.shape, generator=generator) * torch.finfo(dtype).eps
    return torch.cat([-ends, ends, (middle * nudge).to(dtype)], -1)


def test_half_way_cases_tell_a_division_from_a_product_with_the_inverse():
    x = next_to_half_way(torch.bfloat16)
    packed = encode_reference(x, Spec(8, 64))
    product = torch.round(x.float() * (1 / packed.scale.float())) + packed.zero_point
    assert not product.clamp(0, 255).to(torch.uint8).equal(packed.codes())


def test_the_comparison_notices_a_single_bit(monkeypatch):
    x, spec = torch.randn(4, 128), Spec(4, 32)
    assert packed_alike(x, spec)
    run = native.encode_into

    def wrong(x, words, scale, zero_point, spec):
        took = run(x, words, scale, zero_point, spec)
        words[2, 5] ^= 64
        return took

    monkeypatch.setattr(native, "encode_into", wrong)
    assert not packed_alike(x, spec)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_rows_are_spread_over_threads(level, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.randn(301, 1000).bfloat16()
        assert packed_alike(x, Spec(4, 128))
        assert decoded_alike(encode_reference(x, Spec(4, 128)), torch.bfloat16)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("spec", [Spec(3, 64), Spec(4, -1), Spec(8, 128, True), Spec(5, 100)], ids=str)
def test_more_codes_than_the_caches_hold(level, spec):
    """They are written past the caches, from an address that no line begins at."""
    x = torch.randn(2049, 4100).half()
    assert packed_alike(x, spec)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x[:, 1:3],
        lambda x: x[..., 3:150],
        lambda x: x[::2, :, ::2],
        lambda x: x[:1].expand(3, -1, -1, -1),
        lambda x: x.flatten()[1:],
        lambda x: x[0, 0, 0],
    ],
    ids=["transposed", "part", "columns", "every second", "expanded", "odd address", "one row"],
)
def test_numbers_that_are_not_contiguous(level, view):
    x = view(torch.randn(3, 4, 5, 200).bfloat16())
    assert packed_alike(x, Spec(4, 64))


def test_columns_are_left_to_torch():
    x = torch.randn(64, 32).t()
    assert not packed_alike(x, Spec(4))
    assert same(PackedTensor.encode(x, Spec(4)).words, encode_reference(x, Spec(4)).words)


def test_part_of_a_packed_tensor(level):
    packed = encode_reference(torch.randn(3, 8, 200), Spec(3, 48))
    for part in (packed.part(1), packed.part(slice(1, 3)), packed.part(slice(0, 3, 2))):
        assert decoded_alike(part, torch.float32)


@pytest.mark.parametrize("symmetric", [False, True])
def test_one_group_for_a_matrix_is_packed_by_torch_and_unpacked_here(level, symmetric):
    packed = PackedTensor.encode(torch.randn(3, 8, 200), Spec(4, 0, symmetric))
    assert decoded_alike(packed, torch.bfloat16)


@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_that_are_not_finite_are_left_to_torch(level, dtype, value):
    for place in (0, 40, 129):
        x = torch.randn(3, 130).to(dtype)
        x[1, place] = value
        for spec in (Spec(4, 64), Spec(4, 64, True), Spec(8, -1)):
            assert not packed_alike(x, spec)
            found, wanted = PackedTensor.encode(x, spec), encode_reference(x, spec)
            assert found.words.equal(wanted.words)
            assert found.scale.equal(wanted.scale) or found.scale.isnan().equal(wanted.scale.isnan())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_scale_that_is_not_finite_hides_nothing(level, dtype, value):
    packed = encode_reference(torch.randn(3, 128), Spec(4, 64))
    packed.scale[1, 1] = value
    found = native.decode(*packed[:4], packed.length, dtype)
    assert found.isfinite().equal(decode_reference(packed, dtype).isfinite())
    assert not found[1, 64:].isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [1, 8, 64, 80, 96, 128, 256])
def test_rows_of_a_cache(level, dtype, head_dim):
    """Keys come as [B, T, H, D] transposed, and go where they belong in a larger cache."""
    x = torch.randn(2, 5, 3, head_dim).to(dtype).transpose(1, 2)
    groups = {head_dim, max(1, head_dim // 4), -(-head_dim // 5)}
    for bits, group_size, symmetric in itertools.product(range(2, 9), groups, (False, True)):
        row_format = RowFormat(Spec(bits, group_size, symmetric), head_dim, dtype)
        wanted = row_format.encode_reference(x)
        assert row_format.encode(x).equal(wanted)
        cache = torch.full((2, 3, 9, row_format.words + 1), -1, dtype=torch.int16)
        row_format.encode_into(x, cache[:, :, 2:7, :-1])
        assert cache[:, :, 2:7, :-1].equal(wanted)
        cache[:, :, 2:7, :-1] = -1
        assert (cache == -1).all(), "nothing else is written"
        assert same(row_format.decode(wanted), row_format.decode_reference(wanted))


def test_rows_go_into_a_cache_without_kernels_too(monkeypatch):
    row_format, x = RowFormat(Spec(4, 32), 64, torch.float32), torch.randn(1, 2, 3, 64)
    wanted = row_format.encode(x)
    monkeypatch.setattr(native, "is_there", lambda: False)
    rows = torch.zeros_like(wanted)
    row_format.encode_into(x, rows)
    assert rows.equal(wanted)


@pytest.fixture
def no_kernels(monkeypatch):
    """A call of a kernel is an error."""

    def refuse(*args):
        raise AssertionError("a kernel was called")

    monkeypatch.setattr(native.encode, "functions", lambda: native.encode.Functions(*[refuse] * 4))


def test_kernels_are_called(no_kernels):
    """The next test would pass without any: here they must be missed."""
    packed = encode_reference(torch.randn(2, 64), Spec(4))
    row_format = RowFormat(Spec(4), 64, torch.float32)
    rows = row_format.encode_reference(torch.randn(1, 1, 1, 64))
    for run in (
        lambda: PackedTensor.encode(torch.randn(2, 64), Spec(4)),
        packed.decode,
        lambda: row_format.encode(torch.randn(1, 1, 1, 64)),
        lambda: row_format.decode(rows),
    ):
        with pytest.raises(AssertionError, match="a kernel was called"):
            run()


class Subclass(torch.Tensor):
    """Nothing is known about what its operations mean."""


@pytest.mark.parametrize(
    ("x", "spec"),
    [
        (torch.randn(2, 64, dtype=torch.float64), Spec(4)),
        (torch.randn(2, 64, requires_grad=True), Spec(4)),
        (torch.randn(2, 64, device="meta"), Spec(4)),
        (torch.randn(2, 64).as_subclass(Subclass), Spec(4)),
        (torch.randn(2, 64), Spec(4, 64, paper_exact=True)),
        (torch.randn(2, 64), Spec(4, 0)),
        (torch.randn(2, 0), Spec(4)),
        (torch.randn(0, 64), Spec(4)),
    ],
    ids=["float64", "gradient", "meta", "subclass", "paper_exact", "per tensor", "empty rows", "no rows"],
)
def test_what_torch_does(no_kernels, x, spec):
    packed = PackedTensor.encode(x, spec)
    assert packed.words.shape[0] == len(x)
    assert packed.scale.requires_grad == x.requires_grad
    if x.dtype == torch.float64 or x.device.type == "meta":
        assert packed.decode().dtype == x.dtype


def test_fake_tensors_and_graphs_are_left_to_torch(no_kernels):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert PackedTensor.encode(torch.randn(2, 64), Spec(4)).words.shape == (2, 16)

    def both_ways(x):
        return PackedTensor.encode(x, Spec(4)).decode()

    x = torch.randn(3, 64)
    assert torch.compile(both_ways, backend="eager", fullgraph=True)(x).equal(fake_quantize(x, Spec(4)))
