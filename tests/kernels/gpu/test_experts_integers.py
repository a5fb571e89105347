"""Products of integers with the weights of experts in Triton's interpreter, against float64 arithmetic on the codes."""

import pytest
import torch
from linear_reference import exact

pytest.importorskip("triton")

from nothing_waits import NothingWaits

from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import ALLOWED_BITS, PER_ROW, Spec
from qllm_kernels.gpu import experts_integers, integers, weights
from qllm_kernels.gpu.tokens import quantize_tokens

EXPERTS = 4
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SMALL = weights.Config(BLOCK_N=16, BLOCK_M=8, SPLITS=1, num_warps=4, num_stages=2)
CASES = [(SMALL, False), (SMALL._replace(SPLITS=2), False), (SMALL._replace(BLOCK_M=16), True), (SMALL, True)]
GROUP_SIZES = (32, 64, 128, 256, PER_ROW)


def weight(spec, outputs=17, length=300, dtype=torch.float16):
    return PackedTensor.encode((torch.randn(EXPERTS, outputs, length) * 0.1 + 0.02).to(dtype), spec)


def quantized(x, packed, activation):
    form = {"bits": packed.spec.bits, "group_size": packed.spec.group_size, "length": packed.length}
    span = integers.sums_over(packed.zero_point, **form, activation_bits=activation.bits)
    return quantize_tokens(x, bits=activation.bits, symmetric=activation.symmetric, sums_over=span)


def multiply(x, chosen, packed, activation, **given):
    form = {"bits": packed.spec.bits, "group_size": packed.spec.group_size}
    tokens = quantized(x, packed, activation)
    return experts_integers.multiply(tokens, chosen, *packed[:3], **form, **given)


def wrong(y, x, chosen, packed, activation):
    """Numbers of each row that are further from the exact ones than they may be."""
    wanted, tolerance = torch.zeros(2, *y.shape, dtype=torch.float64)
    for expert in range(EXPERTS):
        mine = chosen == expert
        if mine.any():
            found = exact(x[mine], packed.part(expert), None, activation)
            wanted[mine], tolerance[mine] = found.y, found.tolerance("integer")
    assert (y.dtype, y.shape) == (x.dtype, wanted.shape)
    return ((y.double() - wanted).abs() > tolerance).sum(-1)


@pytest.mark.parametrize("bits", ALLOWED_BITS)
def test_agrees_with_exact_arithmetic(bits):
    """Bits x groups; types, activations, rows and blocks, splits in turn. One row has no expert."""
    for number, group_size in enumerate(GROUP_SIZES, start=3 * bits):
        config, ordered = CASES[number % 4]
        dtype = DTYPES[number % 3]
        activation = (Spec(8, -1), Spec(4, -1, symmetric=True), Spec(8, -1, symmetric=True))[number // 2 % 3]
        packed = weight(Spec(bits, group_size, symmetric=number // 3 % 2 == 0), dtype=dtype)
        x, chosen = torch.randn(7 if ordered else 3, 300).to(dtype), torch.randint(EXPERTS, (7 if ordered else 3,))
        chosen[1] = (EXPERTS, -1)[number % 2]
        y = multiply(x, chosen, packed, activation, config=config, ordered=ordered)
        assert not wrong(y, x, chosen, packed, activation).any(), number
        assert not y[1].any()


@pytest.mark.parametrize("rows", [0, 1, 9])
def test_default_config(rows):
    packed, activation = weight(Spec(8, 128), 40, 1024, torch.bfloat16), Spec(8, -1)
    x, chosen = torch.randn(rows, 1024).bfloat16(), torch.full((rows,), 2)
    with NothingWaits():
        y = multiply(x, chosen, packed, activation)
    assert y.shape == (rows, 40)
    assert not wrong(y, x, chosen, packed, activation).any()


@pytest.mark.parametrize("ordered", [False, True], ids=["rows", "blocks"])
def test_a_wrong_code_is_found_in_the_rows_of_its_expert(ordered):
    packed, activation = weight(Spec(4, 64)), Spec(8, -1)
    x, chosen = torch.randn(6, 300).half(), torch.tensor([2, 0, 2, 3, 1, 4])
    changed = packed.words.clone()
    changed[2, 5, 3] ^= 0x4040
    given = {"config": SMALL, "ordered": ordered}
    y = multiply(x, chosen, packed, activation, **given)
    broken = multiply(x, chosen, packed._replace(words=changed), activation, **given)
    assert (y != broken).nonzero().tolist() == [[0, 5], [2, 5]]
    assert wrong(broken, x, chosen, packed, activation).tolist() == [1, 0, 1, 0, 0, 0]
    other = multiply(x, (chosen + 1) % EXPERTS, packed, activation, **given)
    assert (wrong(other, x, chosen, packed, activation) > 8).all()


@pytest.mark.parametrize("ordered", [False, True], ids=["rows", "blocks"])
def test_tokens_of_several_experts(ordered):
    """With all that tokens have: scales, zero points and sums over groups."""
    packed, activation = weight(Spec(8, 128), 17, 300), Spec(8, -1)
    x, chosen = torch.randn(2, 300).half() + 1, torch.tensor([1, 3, EXPERTS, 3, 0, 2])
    y = multiply(x, chosen, packed, activation, config=SMALL, ordered=ordered)
    assert not wrong(y, x.repeat_interleave(3, 0), chosen, packed, activation).any()
    assert wrong(y, x.repeat(3, 1), chosen, packed, activation)[1] > 8


def test_a_row_that_is_not_finite_stays_alone():
    packed, activation = weight(Spec(4, 64)), Spec(8, -1)
    x, chosen = torch.randn(4, 300).half(), torch.tensor([0, EXPERTS, 1, 0])
    x[0, 3] = torch.nan
    x[1, 3] = torch.inf
    for config, ordered in CASES:
        y = multiply(x, chosen, packed, activation, config=config, ordered=ordered)
        assert y.isnan().any(1).tolist() == [True, False, False, False]
        assert not y[1].any()


@pytest.mark.parametrize(
    "change",
    (
        {"chosen": torch.zeros(3, dtype=torch.int64)},
        {"words": torch.zeros(4, 32, dtype=torch.int16)},
        {"words": torch.zeros(3, 4, 31, dtype=torch.int16)},
        {"scale": torch.zeros(2, 4, 1).half()},
        {"zero_point": torch.zeros(3, 4, 2, dtype=torch.uint8)},
        {"bits": 9},
        {"group_size": 48},
        {"config": SMALL._replace(BLOCK_N=24)},
        {"config": SMALL._replace(SPLITS=2)},
    ),
    ids=str,
)
def test_what_does_not_fit_is_an_error(change):
    arguments = {
        "chosen": torch.zeros(2, dtype=torch.int64),
        "words": torch.zeros(3, 4, 32, dtype=torch.int16),
        "scale": torch.zeros(3, 4, 1).half(),
        "zero_point": torch.zeros(3, 4, 1, dtype=torch.uint8),
        "bits": 4,
        "group_size": 128,
    }
    tokens = quantize_tokens(torch.randn(2, 128).half(), bits=8, symmetric=False)
    assert experts_integers.multiply(tokens, **arguments).shape == (2, 4)
    with pytest.raises(ValueError):
        experts_integers.multiply(tokens, **arguments | change)
