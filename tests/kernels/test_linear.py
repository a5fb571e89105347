"""The linear operation on every level, against float64 arithmetic on the codes and against its twins in torch."""

import itertools
from collections import Counter

import pytest
import torch
from exactness import DTYPES
from linear_reference import exact

from qllm_hf.ops import LINEAR, linear, linear_many, prefer
from qllm_hf.ops import cpu as implementation
from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import ALLOWED_BITS, PER_ROW, Spec

TOKENS = (1, 2, 3, 5, 8, 16, 17, 33, 70)
GROUP_SIZES = (32, 64, 96, 128, PER_ROW, 0)
# out features and in features: odd, less than a block, a short last block, a short last group, several stretches
SHAPES = (
    (37, 300),
    (5, 64),
    (130, 1333),
    (1, 1),
    (3, 40),
    (17, 127),
    (64, 256),
    (9, 129),
    (33, 511),
    (2, 31),
    (8, 2560),
)
CASES = list(itertools.product(ALLOWED_BITS, GROUP_SIZES, DTYPES, (None, 8, 4)))


def case(number: int, tokens: int = max(TOKENS)):
    """Arguments of the operation: number chooses one of CASES, and shape and symmetry so that all of them meet."""
    bits, group_size, dtype, a = CASES[number]
    rows, length = SHAPES[number % len(SHAPES)]
    spec = Spec(bits, group_size, symmetric=bool(number // 2 % 2))
    activation = None if a is None else Spec(a, PER_ROW, symmetric=bool(number // 4 % 2))
    scale = 10 ** torch.empty(tokens, 1).uniform_(-3, 2)
    x, weight = (torch.randn(tokens, length) * scale).to(dtype), (torch.randn(rows, length) * 0.1 + 0.02).to(dtype)
    bias = torch.randn(rows).to(dtype) if number % 3 else None
    return x, PackedTensor.encode(weight, spec), bias, activation


def assert_within(y, wanted, implementation: str, *said) -> None:
    wrong = ~((y.double() - wanted.y).abs() <= wanted.tolerance(implementation))
    assert not wrong.any(), (*said, f"{int(wrong.sum())} of {wrong.numel()} are wrong")


@pytest.mark.parametrize("bits", ALLOWED_BITS)
def test_agrees_with_exact_arithmetic(level, bits):
    """Bits x groups x dtypes x A16, A8, A4 x tokens, on shapes in turn."""
    compared = 0
    for number in range(len(CASES)):
        if CASES[number][0] != bits:
            continue
        x, weight, bias, activation = case(number)
        wanted = exact(x, weight, bias, activation)
        for tokens in TOKENS:
            y = implementation.linear(x[:tokens], weight, bias, activation)
            assert (y.dtype, y.shape) == (x.dtype, (tokens, weight.words.shape[0]))
            assert_within(y, wanted.first(tokens), "cpu", CASES[number], tokens)
            compared += 1
    assert compared == len(CASES) // len(ALLOWED_BITS) * len(TOKENS)


def test_agrees_with_its_twins(level):
    """Implementations in torch, which share no code with the kernels."""
    compared = Counter()
    for number in range(0, len(CASES), 5):
        arguments = case(number, 5)
        wanted = exact(*arguments)
        y = implementation.linear(*arguments)
        for twin in LINEAR:
            if twin.name not in ("integer", "dequantize") or (twin.name == "integer" and arguments[3] is None):
                continue
            apart = (y.double() - twin.run(*arguments).double()).abs()
            assert (apart <= wanted.tolerance("cpu") + wanted.tolerance(twin.name)).all(), (twin.name, CASES[number])
            compared[twin.name] += 1
    assert min(compared["dequantize"], compared["integer"]) > 20


@pytest.mark.parametrize("bits", ALLOWED_BITS)
def test_rows_of_1_to_40_numbers(level, bits):
    for length, dtype in zip(range(1, 41), itertools.cycle(DTYPES)):
        activation = None if length % 2 else Spec(8, PER_ROW)
        x, weight = torch.randn(17, length).to(dtype), torch.randn(length % 7 + 1, length).to(dtype)
        packed = PackedTensor.encode(weight, Spec(bits, 32))
        wanted = exact(x, packed, None, activation)
        for tokens in (1, 3, 17):
            y = implementation.linear(x[:tokens], packed, None, activation)
            assert_within(y, wanted.first(tokens), "cpu", length, dtype, tokens)


def test_one_wrong_bit_is_noticed(level):
    """Each bit of the first row's codes, one after the other: a check that passes whatever the weights are is none."""
    x, weight = torch.randn(3, 160), PackedTensor.encode(torch.randn(4, 160), Spec(5, 32))
    wanted = exact(x, weight, None, None)
    for word, bit in itertools.product(range(0, weight.words.shape[1], 7), range(0, 16, 3)):
        words = weight.words.clone()
        words[1, word] ^= (1 << bit) - (1 << 16 if bit == 15 else 0)
        y = implementation.linear(x, weight._replace(words=words), None, None)
        wrong = (y.double() - wanted.y).abs() > wanted.tolerance("cpu")
        assert wrong.any(0).nonzero().flatten().tolist() == [1], (word, bit)


@pytest.mark.parametrize("tokens", [1, 4, 40])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("a", [None, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_shows(level, tokens, value, a, dtype):
    """In the token that holds it, and in the row of the weight whose scale it is; nowhere else."""
    activation = None if a is None else Spec(a, PER_ROW)
    x, weight = torch.randn(tokens, 300).to(dtype), PackedTensor.encode(torch.randn(6, 300).to(dtype), Spec(4, 64))
    x[tokens // 2, 299] = value
    y = implementation.linear(x, weight, None, activation)
    finite = torch.arange(tokens) != tokens // 2
    assert not y[~finite].isfinite().any()
    assert y[finite].isfinite().all()
    scale = weight.scale.clone()
    scale[2, 3] = value
    y = implementation.linear(x[finite], weight._replace(scale=scale), None, activation)
    assert not y[:, 2].isfinite().any()
    assert y[:, [0, 1, 3, 4, 5]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_numbers(level, dtype):
    """Tokens of zeros, of the smallest and of the largest numbers that a dtype has."""
    limits = torch.finfo(dtype)
    rows = [0.0, limits.smallest_normal, limits.tiny * limits.eps, 1.0, limits.max / 1024]
    x = (torch.tensor(rows, dtype=torch.float64).unsqueeze(1) * torch.ones(1, 256)).to(dtype)
    x[:, ::2] *= -1
    x[:, 200:] *= 0.5
    weight = PackedTensor.encode(torch.randn(6, 256).to(dtype), Spec(4, 128))
    wanted = exact(x, weight, None, None)
    y = implementation.linear(x, weight, None, None)
    # results below the smallest normal number have fewer digits, or none where the processor flushes them
    slack = 2 * 256 * limits.smallest_normal
    assert ((y.double() - wanted.y).abs() <= wanted.tolerance("cpu") + slack).all()
    assert (y[0] == 0).all()


def test_strides_and_shapes_of_x(level):
    weight, bias = PackedTensor.encode(torch.randn(7, 96), Spec(4, 32)), torch.randn(7)
    base = torch.randn(4, 3, 200)
    views = {
        "every other token": base[::2, :, :96],
        "expanded": base[:1, :1, :96].expand(4, 3, 96),
        "transposed tokens": base[..., :96].transpose(0, 1),
        "every other number": base[..., ::2][..., :96],
        "last dimension not contiguous": torch.randn(96, 5).t(),
        "one token": base[1, 1, 3:99],
        "four dimensions": base[..., :192].reshape(2, 2, 6, 96),
        "no token": base[:0, :, :96],
    }
    for name, x in views.items():
        y = implementation.linear(x, weight, bias, None)
        assert y.shape == (*x.shape[:-1], 7), name
        wanted = exact(x.reshape(-1, 96), weight, bias, None)
        assert_within(y.reshape(-1, 7), wanted, "cpu", name)


@pytest.mark.parametrize("group_size", [32, 0])
def test_strides_of_weights(level, group_size):
    """Parts of a stack of matrices, and rows cut out of a wider tensor, are read where they are."""
    stack = PackedTensor.encode(torch.randn(3, 12, 160), Spec(3, group_size))
    x = torch.randn(2, 160)
    for index in range(3):
        part = stack.part(index)
        assert_within(implementation.linear(x, part, None, None), exact(x, part, None, None), "cpu", index)
    if group_size:
        rows = stack.part(1).part(slice(2, 11, 3))
        assert_within(implementation.linear(x, rows, None, None), exact(x, rows, None, None), "cpu", "rows")


def test_bias_of_another_dtype(level):
    x, weight, bias = (
        torch.randn(3, 64).bfloat16(),
        PackedTensor.encode(torch.randn(5, 64), Spec(4, 32)),
        torch.randn(5),
    )
    y = implementation.linear(x, weight, bias, None)
    assert y.equal(implementation.linear(x, weight, bias.bfloat16(), None))
    assert not y.equal(implementation.linear(x, weight, None, None))


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("a", [None, 8])
def test_several_weights_at_once(level, tokens, a):
    """Other bits, groups, symmetry, rows and dtypes of scales; with and without bias."""
    activation = None if a is None else Spec(a, PER_ROW)
    specs = (Spec(4, 128), Spec(3, 32, symmetric=True), Spec(8, PER_ROW), Spec(2, 64), Spec(5, 0))
    x = torch.randn(2, tokens, 300).bfloat16()
    pairs = [
        (
            PackedTensor.encode(torch.randn(5 + 30 * i, 300), spec, torch.bfloat16 if i % 2 else torch.float32),
            torch.randn(5 + 30 * i).bfloat16() if i % 2 else None,
        )
        for i, spec in enumerate(specs)
    ]
    with prefer("cpu"):
        results = linear_many(x, pairs, activation)
        for y, (weight, bias) in zip(results, pairs, strict=True):
            assert y.shape == (2, tokens, weight.words.shape[0])
            wanted = exact(x.reshape(-1, 300), weight, bias, activation)
            assert_within(y.reshape(-1, y.shape[-1]), wanted, "cpu", weight.spec)
            alone = linear(x, weight, bias, activation)
            assert ((alone.double() - y.double()).abs().reshape(-1, y.shape[-1]) <= 2 * wanted.tolerance("cpu")).all()


def test_any_number_of_threads_gives_the_same(level):
    """Up to the order of additions."""
    for tokens, activation in itertools.product((1, 5, 40), (None, Spec(8, PER_ROW))):
        x, weight = torch.randn(tokens, 1024), PackedTensor.encode(torch.randn(301, 1024), Spec(4, 128))
        wanted = exact(x, weight, None, activation)
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            try:
                y = implementation.linear(x, weight, None, activation)
            finally:
                torch.set_num_threads(1)
            assert_within(y, wanted, "cpu", tokens, threads)
