"""Products with packed weights in Triton's interpreter, against float64 arithmetic on the codes and against torch."""

import itertools

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from weights_reference import exact  # noqa: E402

from qllm_hf.ops import reference  # noqa: E402
from qllm_hf.packed import PackedTensor  # noqa: E402
from qllm_hf.scheme import ALLOWED_BITS, PER_ROW, Spec  # noqa: E402
from qllm_kernels.gpu import weights, weights_tiles  # noqa: E402

DTYPES = (torch.float16, torch.bfloat16)
GROUP_SIZES = (32, 64, 128, 256, PER_ROW)
# outputs and length: whole blocks, a short last block, less than a block, odd ones, a short last group
SHAPES = ((33, 256), (17, 300), (5, 64), (16, 128), (9, 129), (1, 384), (3, 31), (20, 447))
# tokens and tiles: each way to lose the zero point, odd splits, tiles that stick out
SMALL = weights.Config(BLOCK_N=16, BLOCK_M=16, SPLITS=1, num_warps=4, num_stages=2)
TILES = (
    (1, SMALL._replace(BLOCK_M=8)),
    (3, SMALL._replace(SPLITS=2)),
    (16, SMALL),
    (17, SMALL._replace(BLOCK_M=32, SPLITS=3)),
    (33, SMALL._replace(BLOCK_M=64, BLOCK_N=32)),
    (70, SMALL._replace(BLOCK_M=128, BLOCK_N=64)),
)


def case(number, bits, group_size, dtype):
    """Weight, tokens, bias and config; number chooses shape, tiles, symmetry, dtype of scales."""
    rows, length = SHAPES[number % len(SHAPES)]
    tokens, config = TILES[number % len(TILES)]
    x = (torch.randn(tokens, length) * 10 ** torch.empty(tokens, 1).uniform_(-2, 1)).to(dtype)
    scale_dtype = torch.float32 if number % 5 == 0 else dtype
    weight = torch.randn(rows, length) * 0.1 + 0.02
    packed = PackedTensor.encode(weight.to(dtype), Spec(bits, group_size, symmetric=bool(number // 2 % 2)), scale_dtype)
    return x, packed, torch.randn(rows).to(dtype) if number % 3 else None, config


def multiply(x, packed, bias=None, **chosen):
    words, scale, zero_point, spec, length = packed
    return weights.linear(
        x, words, scale, zero_point, bits=spec.bits, group_size=spec.group_size, length=length, bias=bias, **chosen
    )


def wrong(x, packed, bias=None, **chosen):
    """How many numbers of the product are further from the exact ones than they may be."""
    y, (wanted, tolerance) = multiply(x, packed, bias, **chosen), exact(x, packed, bias)
    assert (y.dtype, y.shape) == (x.dtype, wanted.shape)
    return int(((y.double() - wanted).abs() > tolerance).sum())


@pytest.mark.parametrize("bits", ALLOWED_BITS)
def test_agrees_with_exact_arithmetic(bits):
    """Bits x groups x dtypes, on shapes and tiles in turn."""
    for number, (group_size, dtype) in enumerate(itertools.product(GROUP_SIZES, DTYPES), start=3 * bits):
        x, packed, bias, config = case(number, bits, group_size, dtype)
        assert not wrong(x, packed, bias, config=config), number


@pytest.mark.parametrize("bits", ALLOWED_BITS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_way_and_tile(bits, dtype):
    """All tiles on one weight, with a group size that changes within a block, and a short last block."""
    packed = PackedTensor.encode((torch.randn(18, 300) * 0.1).to(dtype), Spec(bits, 64))
    for tokens, config in TILES:
        assert not wrong(torch.randn(tokens, 300).to(dtype), packed, config=config), config


@pytest.mark.parametrize("symmetric", (False, True))
@pytest.mark.parametrize("group_size", (32, 64, 128, 256, PER_ROW))
def test_every_reading_of_scales(group_size, symmetric):
    """Several rows to a thread and several threads to a row; rows of groups that fill words, half of them, or none."""
    together = {
        weights._reading(weights._way(config, 4), config, packed.scale, packed.zero_point, group_size, length)
        for length in (1024, 768, 640, 384)
        for config in (SMALL._replace(BLOCK_M=8, num_warps=1, BLOCK_N=32), SMALL._replace(num_warps=1, BLOCK_N=32))
        for packed in (PackedTensor.encode(torch.randn(9, length).half(), Spec(4, group_size, symmetric)),)
        if not wrong(torch.randn(2, length).half(), packed, config=config, splits=2) or pytest.fail(str(length))
    }
    assert len(together) > 1 or group_size in (256, PER_ROW)


def test_close_to_torch():
    for number in range(0, 60, 7):
        x, packed, bias, config = case(number, 2 + number % 7, GROUP_SIZES[number % 5], torch.float16)
        y, twin = multiply(x, packed, bias, config=config), reference.linear(x, packed, bias, None)
        assert torch.allclose(y.float(), twin.float(), rtol=1e-2, atol=1e-2 * float(twin.float().abs().max()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", (1, 2, 7, 9, 33))
def test_default_config(tokens, dtype):
    packed = PackedTensor.encode(torch.randn(66, 1024).to(dtype), Spec(4))
    assert not wrong(torch.randn(tokens, 1024).to(dtype), packed, torch.randn(66).to(dtype))


def test_splits_add_up_the_same_each_time():
    x, packed = torch.randn(3, 768).half(), PackedTensor.encode(torch.randn(16, 768).half(), Spec(4, 128))
    for splits in (1, 2, 4, 5, 7):
        once, again = (multiply(x, packed, config=SMALL, splits=splits) for _ in range(2))
        assert torch.equal(once, again)
        assert not wrong(x, packed, config=SMALL, splits=splits)


def test_strided_tokens_and_rows_of_a_larger_weight():
    packed = PackedTensor.encode(torch.randn(48, 256).bfloat16(), Spec(4, 32))
    assert not wrong(torch.randn(4, 512).bfloat16()[:, 200:456], packed.part(slice(16, 37)), config=SMALL)
    assert not wrong(torch.randn(256, 4).bfloat16().T, packed, config=SMALL)


def test_nothing_to_do():
    packed = PackedTensor.encode(torch.randn(8, 64).half(), Spec(4, 32))
    assert multiply(torch.randn(0, 64).half(), packed).shape == (0, 8)
    assert multiply(torch.randn(3, 64).half(), packed.part(slice(0, 0))).shape == (3, 0)
    words, scale, bias = torch.zeros(8, 0, dtype=torch.int16), torch.ones(8, 1).half(), torch.randn(8).half()
    y = weights.linear(torch.zeros(3, 0).half(), words, scale, None, bits=4, group_size=-1, length=0, bias=bias)
    assert torch.equal(y, bias.expand(3, 8))


def test_launches_are_on_the_device_of_the_tokens(monkeypatch):
    """Whatever device is the current one."""
    entered = []
    guard = torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: entered.append(tensor) or guard(tensor))
    x = torch.randn(3, 64).half()
    multiply(x, PackedTensor.encode(torch.randn(8, 64).half(), Spec(4, 32)))
    assert [each.data_ptr() for each in entered] == [x.data_ptr()]


# What would be wrong, and is found


@triton.jit
def one_off(zero_point, start, first, PLACE: tl.constexpr, COUNT: tl.constexpr, READ: tl.constexpr):
    return tl.load(zero_point + start + (first + PLACE))[:, None] + 1


@triton.jit
def of_the_first_group(zero_point, start, first, PLACE: tl.constexpr, COUNT: tl.constexpr, READ: tl.constexpr):
    return tl.load(zero_point + start)[:, None]


@triton.constexpr_function
def none(PLANE, BITS, DTYPE):
    return 0.0


WAYS = pytest.mark.parametrize("tokens, config", (TILES[0], TILES[4], TILES[5]), ids=("folded", "subtracted", "scaled"))


@WAYS
@pytest.mark.parametrize(
    "name, broken",
    (("zero_of", one_off), ("zero_of", of_the_first_group), ("plane_bias", none)),
    ids=("one off", "of the first group", "no bias"),
)
def test_a_wrong_zero_point_or_bias_is_found(monkeypatch, name, broken, tokens, config):
    x, packed = torch.randn(tokens, 256).half(), PackedTensor.encode(torch.randn(20, 256).half(), Spec(4, 64))
    assert not wrong(x, packed, config=config)
    monkeypatch.setattr(weights_tiles, name, broken)
    assert wrong(x, packed, config=config) > tokens * 10


@triton.jit
def of_another_row(scale, start, first, PLACE: tl.constexpr, COUNT: tl.constexpr, READ: tl.constexpr):
    return tl.load(scale + start * 0 + (first + PLACE))[:, None]


@WAYS
def test_scales_of_another_row_are_found(monkeypatch, tokens, config):
    x, packed = torch.randn(tokens, 256).half(), PackedTensor.encode(torch.randn(20, 256).half(), Spec(3, 64))
    monkeypatch.setattr(weights_tiles, "scale_of", of_another_row)
    assert wrong(x, packed, config=config) > tokens * 10


# What is refused


def test_refuses():
    taken = {"bits": 4, "group_size": 128}
    assert weights.refuses(torch.float16, torch.float32, **taken) is None
    for change in ({"bits": 9}, {"bits": 1}, {"group_size": 96}, {"group_size": 0}, {"group_size": 16}):
        assert weights.refuses(torch.float16, torch.float16, **(taken | change)), change
    assert "float32" in weights.refuses(torch.float32, torch.float32, **taken)
    assert weights.refuses(torch.bfloat16, torch.float64, **taken)


@pytest.mark.parametrize(
    "change",
    (
        {"x": torch.zeros(2, 100).half()},
        {"x": torch.zeros(2, 128)},
        {"words": torch.zeros(4, 31, dtype=torch.int16)},
        {"words": torch.zeros(4, 32, dtype=torch.int32)},
        {"scale": torch.zeros(4, 2).half()},
        {"zero_point": torch.zeros(4, 1)},
        {"zero_point": torch.zeros(3, 1, dtype=torch.uint8)},
        {"bias": torch.zeros(3).half()},
        {"bits": 3},
        {"group_size": 48},
        {"config": SMALL._replace(BLOCK_N=24)},
        {"config": SMALL._replace(BLOCK_M=4)},
        {"config": SMALL._replace(SPLITS=0)},
        {"config": SMALL._replace(num_warps=3)},
        {"splits": -1},
    ),
    ids=str,
)
def test_what_does_not_fit_is_an_error(change):
    arguments = {
        "x": torch.zeros(2, 128).half(),
        "words": torch.zeros(4, 32, dtype=torch.int16),
        "scale": torch.zeros(4, 1).half(),
        "zero_point": torch.zeros(4, 1, dtype=torch.uint8),
        "bits": 4,
        "group_size": 128,
        "length": 128,
    }
    assert weights.linear(**arguments).shape == (2, 4)
    with pytest.raises(ValueError):
        weights.linear(**arguments | change)


@pytest.mark.parametrize("tokens", (1, 8, 16, 33, 64, 65, 300))
@pytest.mark.parametrize("outputs, length", ((1, 64), (4096, 4096), (28672, 8192), (4096, 11008)))
def test_default_configs_are_valid(tokens, outputs, length):
    assert weights.config_fault(weights.default_config(tokens, outputs, length, 4, 128)) is None
