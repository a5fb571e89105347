"""Several weights at once in Triton's interpreter: bit for bit what each of them gives alone, and few launches."""

import pytest
import torch

pytest.importorskip("triton")

from weights_reference import exact

from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import ALLOWED_BITS, PER_ROW, Spec
from qllm_kernels.gpu import weights, weights_many

SMALL = weights.Config(BLOCK_N=16, BLOCK_M=8, SPLITS=1, num_warps=4, num_stages=2)
GROUP_SIZES = (32, 64, 128, 256, PER_ROW)
OUTPUTS = ((16, 7, 33), (1, 20), (17, 1, 2), (32, 16))


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels, in the order of their launches."""
    found = []

    class Counted:
        def __init__(self, name, kernel):
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid):
            found.append(self.name)
            return self.kernel[grid]

    for module, names in ((weights, ("product", "add_splits")), (weights_many, ("product_many", "add_splits_many"))):
        for name in names:
            monkeypatch.setattr(module, name, Counted(name, getattr(module, name)))
    return found


def packed(outputs, length, spec, dtype=torch.float16, biases=False):
    """Words, scale, zero point and bias of some weights."""
    found = [PackedTensor.encode((torch.randn(rows, length) * 0.1).to(dtype), spec)[:3] for rows in outputs]
    return [(*each, torch.randn(len(each[0])).to(dtype) if biases else None) for each in found]


def form(spec, length):
    return {"bits": spec.bits, "group_size": spec.group_size, "length": length}


@pytest.mark.parametrize("bits", ALLOWED_BITS)
def test_each_is_what_it_is_alone(launches, bits):
    """Two and three weights, whole and odd numbers of outputs, with a bias and zero points and without, and splits."""
    for number, group_size in enumerate(GROUP_SIZES, start=3 * bits):
        spec, length = Spec(bits, group_size, symmetric=number % 2 == 0), (128, 300)[number // 2 % 2]
        dtype = (torch.float16, torch.bfloat16)[number // 3 % 2]
        config = SMALL._replace(BLOCK_M=(8, 16, 128)[number % 3], SPLITS=1 + number // 2 % 2)
        x = torch.randn(3, length).to(dtype)
        given = packed(OUTPUTS[number % 4], length, spec, dtype, biases=number % 5 > 1)
        alone = [weights.linear(x, *each[:3], **form(spec, length), bias=each[3], config=config) for each in given]
        launches.clear()
        together = weights_many.linear_many(x, given, **form(spec, length), config=config)
        assert launches == ["product_many", "add_splits_many"][: 1 + (config.SPLITS > 1)]
        for one, other in zip(together, alone, strict=True):
            assert one.equal(other), number


@pytest.mark.parametrize("tokens", [1, 9])
def test_default_config(launches, tokens):
    spec, x = Spec(4, 128), torch.randn(tokens, 1024).half()
    given = packed((48, 16, 16), 1024, spec, biases=True)
    together = weights_many.linear_many(x, given, **form(spec, 1024))
    assert launches == ["product_many", "add_splits_many"]
    for y, (words, scale, zero_point, bias) in zip(together, given, strict=True):
        wanted, tolerance = exact(x, PackedTensor(words, scale, zero_point, spec, 1024), bias)
        assert ((y.double() - wanted).abs() <= tolerance).all()


def test_a_changed_code_changes_its_output_of_its_weight(launches):
    spec, x = Spec(4, 32), torch.randn(5, 128).half()
    given = packed((16, 20, 9), 128, spec)
    before = weights_many.linear_many(x, given, **form(spec, 128), config=SMALL)
    given[1][0][17, 3] ^= 0x4040
    after = weights_many.linear_many(x, given, **form(spec, 128), config=SMALL)
    assert [(a != b).any(0).nonzero().flatten().tolist() for a, b in zip(before, after, strict=True)] == [[], [17], []]


def test_more_than_three_and_a_single_one(launches):
    spec, x = Spec(3, 64), torch.randn(2, 128).half().T.contiguous().T
    given = packed((5, 6, 7, 8), 128, spec)
    together = weights_many.linear_many(x, given, **form(spec, 128), config=SMALL)
    assert launches == ["product_many", "product"]
    for y, each in zip(together, given, strict=True):
        assert y.equal(weights.linear(x, *each[:3], **form(spec, 128), config=SMALL))


@pytest.mark.parametrize("mixed", ["bias", "scales", "zero points", "nothing"])
def test_what_differs_is_multiplied_one_by_one(launches, mixed):
    spec, x = Spec(4, 64), torch.randn(2, 128).half()
    first, second = packed((12, 10), 128, spec, biases=True)
    if mixed == "bias":
        second = (*second[:3], None)
    if mixed == "scales":
        second = (second[0], second[1].float(), *second[2:])
    if mixed == "zero points":
        second = (*second[:2], None, second[3])
    together = weights_many.linear_many(x, [first, second], **form(spec, 128), config=SMALL)
    assert launches == (["product_many"] if mixed == "nothing" else ["product", "product"])
    for y, each in zip(together, (first, second), strict=True):
        assert y.equal(weights.linear(x, *each[:3], **form(spec, 128), bias=each[3], config=SMALL))


def test_nothing_to_do(launches):
    spec, x = Spec(4, 64), torch.randn(2, 128).half()
    some, more = packed((12, 10), 128, spec)
    none = (*(part[:0] for part in some[:3]), None)
    assert weights_many.linear_many(x, [], **form(spec, 128)) == []
    for given in ([some, more], [none, none]):
        shapes = [y.shape for y in weights_many.linear_many(x[:0], given, **form(spec, 128))]
        assert shapes == [(0, len(each[0])) for each in given]
    assert launches == []
    nothing, y = weights_many.linear_many(x, [none, more], **form(spec, 128), config=SMALL)
    assert nothing.shape == (2, 0)
    assert y.equal(weights.linear(x, *more[:3], **form(spec, 128), config=SMALL))


@pytest.mark.parametrize("config", [SMALL._replace(BLOCK_N=24), None], ids=str)
def test_what_does_not_fit_is_an_error(config):
    spec = Spec(4, 64)
    given = packed((12, 10), 128, spec)
    if config is None:
        given[1] = (given[1][0], given[1][1][:5], *given[1][2:])
    with pytest.raises(ValueError, match="tiles of 24" if config else "scales"):
        weights_many.linear_many(torch.zeros(2, 128).half(), given, **form(spec, 128), config=config)
