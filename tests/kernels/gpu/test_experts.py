"""Products with the weights of experts in Triton's interpreter, against float64 arithmetic on the codes."""

import pytest
import torch

pytest.importorskip("triton")

from nothing_waits import NothingWaits
from weights_reference import exact

from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import ALLOWED_BITS, PER_ROW, Spec
from qllm_kernels.gpu import experts, weights
from qllm_kernels.gpu.experts_order import block_count, in_order

DTYPES = (torch.float16, torch.bfloat16)
GROUP_SIZES = (32, 64, 128, 256, PER_ROW)
SHAPES = ((17, 300), (20, 256), (5, 64), (9, 129))  # outputs and length: short last blocks and groups, odd ones
SMALL = weights.Config(BLOCK_N=16, BLOCK_M=8, SPLITS=1, num_warps=4, num_stages=2)
CONFIGS = (SMALL, SMALL._replace(BLOCK_M=16, SPLITS=2), SMALL._replace(BLOCK_M=128, BLOCK_N=64))
EXPERTS = 4


def chosen_by(rows, number):
    """Experts of some rows: any; all the same one; none for the second; some outside."""
    chosen = torch.randint(EXPERTS, (rows,))
    if number % 4 == 1:
        chosen[:] = 2
    elif number % 4 == 2:
        chosen[chosen == 1] = 3
    elif number % 4 == 3:
        chosen[::3] = torch.tensor([EXPERTS, -1, 2**40]).repeat(rows)[: len(chosen[::3])]
    return chosen


def weight(spec, shape=SHAPES[0], dtype=torch.float16):
    return PackedTensor.encode((torch.randn(EXPERTS, *shape) * 0.1 + 0.02).to(dtype), spec)


def multiply(x, chosen, packed, **given):
    words, scale, zero_point, spec, length = packed
    form = {"bits": spec.bits, "group_size": spec.group_size, "length": length}
    return experts.linear(x, chosen, words, scale, zero_point, **form, **given)


def wrong(y, x, chosen, packed):
    """Numbers for each row that are further from the exact ones than they may be."""
    wanted, tolerance = torch.zeros(2, *y.shape, dtype=torch.float64)
    for expert in range(packed.words.shape[0]):
        mine = chosen == expert
        wanted[mine], tolerance[mine] = exact(x[mine], packed.part(expert))
    assert y.dtype == x.dtype
    return ((y.double() - wanted).abs() > tolerance).sum(-1)


@pytest.mark.parametrize("ordered", [False, True], ids=["rows", "blocks"])
@pytest.mark.parametrize("bits", ALLOWED_BITS)
def test_agrees_with_exact_arithmetic(bits, ordered):
    """Bits x groups; types, choices, shapes and tiles in turn: what rows do in one type, blocks do in the other."""
    rows = 11 if ordered else 4
    for number, group_size in enumerate(GROUP_SIZES, start=3 * bits):
        dtype, shape = DTYPES[(number + ordered) % 2], SHAPES[number % len(SHAPES)]
        packed = weight(Spec(bits, group_size, symmetric=bool(number // 2 % 2)), shape, dtype)
        x, chosen = torch.randn(rows, shape[1]).to(dtype), chosen_by(rows, number // 2)
        y = multiply(x, chosen, packed, config=CONFIGS[number % 3], ordered=ordered)
        assert not wrong(y, x, chosen, packed).any(), number


@pytest.mark.parametrize(("rows", "ordered"), [(0, False), (1, False), (5, False), (0, True), (1, True), (33, True)])
def test_every_choice(rows, ordered):
    packed = weight(Spec(4, 64), (17, 129))
    for number in range(4):
        x, chosen = torch.randn(rows, 129).half(), chosen_by(rows, number)
        y = multiply(x, chosen.int() if number == 0 else chosen, packed, config=CONFIGS[1], ordered=ordered)
        assert y.shape == (rows, 17)
        assert not wrong(y, x, chosen, packed).any(), number
        outside = (chosen < 0) | (chosen >= EXPERTS)
        assert (y == 0).all(-1).equal(outside)


@pytest.mark.parametrize("rows", [2, 3, 40])
def test_default_config(rows):
    packed = weight(Spec(3, 64), (40, 1024), torch.bfloat16)
    x, chosen = torch.randn(rows, 1024).bfloat16(), chosen_by(rows, 0)
    assert experts.takes_blocks(rows, EXPERTS) == (rows > 2)
    assert not wrong(multiply(x, chosen, packed), x, chosen, packed).any()


@pytest.mark.parametrize("ordered", [False, True], ids=["rows", "blocks"])
def test_tokens_of_several_experts(ordered):
    packed = weight(Spec(4, 64), (17, 129))
    x, chosen = torch.randn(2, 129).half(), torch.tensor([1, 3, EXPERTS, 3, 0, 2])
    y = multiply(x, chosen, packed, config=SMALL, ordered=ordered)
    assert not wrong(y, x.repeat_interleave(3, 0), chosen, packed).any()
    assert wrong(y, x.repeat(3, 1), chosen, packed)[1] > 8


def test_strided_tokens_and_experts_of_a_larger_weight():
    packed = weight(Spec(4, 32), (16, 256))
    x, chosen = torch.randn(6, 512).half()[:, 200:456], torch.tensor([0, 1, 2, 1, 0, 3])
    for part in (packed, packed.part(slice(1, 4)), packed.part(torch.tensor([3, 0]))):
        assert not wrong(multiply(x, chosen, part, config=SMALL), x, chosen, part).any()
    assert not wrong(multiply(x.T.contiguous().T, chosen, packed, config=SMALL), x, chosen, packed).any()


@pytest.mark.parametrize("ordered", [False, True], ids=["rows", "blocks"])
def test_a_wrong_code_is_found_in_the_rows_of_its_expert(ordered):
    """In one of the outputs, and nowhere else; so is another expert."""
    packed = weight(Spec(4, 64))
    x, chosen = torch.randn(9, 300).half(), torch.tensor([2, 0, 2, 3, 1, 0, 2, 4, -1])
    changed = packed.words.clone()
    changed[2, 5, 3] ^= 0x4040
    given = {"config": SMALL, "ordered": ordered}
    y, broken = multiply(x, chosen, packed, **given), multiply(x, chosen, packed._replace(words=changed), **given)
    assert (y != broken).nonzero().tolist() == [[0, 5], [2, 5], [6, 5]]
    assert wrong(broken, x, chosen, packed).tolist() == [1, 0, 1, 0, 0, 0, 1, 0, 0]
    assert (wrong(multiply(x, (chosen + 1) % 4, packed, **given), x, chosen, packed) > 8).all()


def test_same_in_rows_and_ordered_and_each_time():
    packed = weight(Spec(4, 128), (20, 384), torch.bfloat16)
    x, chosen = torch.randn(4, 384).bfloat16(), chosen_by(4, 3)
    first = multiply(x, chosen, packed, config=CONFIGS[0], ordered=False)
    assert multiply(x, chosen, packed, config=CONFIGS[0], ordered=False).equal(first)
    again = multiply(x, chosen, packed, config=CONFIGS[0], ordered=True)
    assert multiply(x, chosen, packed, config=CONFIGS[0], ordered=True).equal(again)
    torch.testing.assert_close(first, again)


# The order of rows


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("rows", [1, 7, 8, 130, 2100])
def test_order_and_blocks(rows, size):
    """Every row is in one block, of its expert; there are as many blocks as there is room for, some of them empty."""
    for number in range(4):
        chosen = chosen_by(rows, number)
        order, blocks = in_order(chosen, EXPERTS, size)
        inside = torch.where((chosen >= 0) & (chosen < EXPERTS), chosen, EXPERTS)
        assert order.tolist() == inside.argsort(stable=True).tolist()
        assert blocks.shape == (3, block_count(rows, EXPERTS, size))
        seen = []
        for expert, first, end in blocks.T.tolist():
            mine = order[first : min(end, first + size)].tolist() if first < end else []
            assert (inside[mine] == expert).all()
            seen += mine
        assert sorted(seen) == list(range(rows))


def test_room_is_enough_and_no_more_than_a_block_for_each_expert():
    """One row for each expert, and the most blocks: each expert has one row more than fills blocks."""
    for chosen in (torch.arange(EXPERTS), torch.arange(EXPERTS).repeat_interleave(9)):
        _, blocks = in_order(chosen, EXPERTS, 8)
        used = (blocks[1] < blocks[2]).sum()
        assert EXPERTS <= used < blocks.shape[1] == len(chosen) // 8 + EXPERTS + 1


# Nothing waits for the device


@pytest.mark.parametrize("rows", [2, 12])
def test_nothing_waits_for_the_device(monkeypatch, rows):
    def waits(_):
        raise RuntimeError("waits for the device")

    monkeypatch.setattr(torch.Tensor, "tolist", waits)  # which the dispatcher does not see
    packed = weight(Spec(4, 64))
    x, chosen = torch.randn(rows, 300).half(), chosen_by(rows, 0)
    with NothingWaits():
        y = multiply(x, chosen, packed)
        with pytest.raises(RuntimeError, match="waits"):
            torch.unique(chosen)
        with pytest.raises(RuntimeError, match="waits"):
            chosen.sum().item()
        with pytest.raises(RuntimeError, match="waits"):
            chosen.tolist()
    assert not wrong(y, x, chosen, packed).any()


def test_launches_are_on_the_device_of_the_tokens(monkeypatch):
    """Whatever device is the current one."""
    entered = []
    guard = torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: entered.append(tensor) or guard(tensor))
    x, chosen = torch.randn(6, 300).half(), chosen_by(6, 0)
    multiply(x, chosen, weight(Spec(4, 64)), config=SMALL, ordered=True)
    assert [each.data_ptr() for each in entered] == [chosen.data_ptr(), x.data_ptr()]


# What is refused


@pytest.mark.parametrize(
    "change",
    (
        {"x": torch.zeros(2, 100).half()},
        {"x": torch.zeros(2, 128)},
        {"chosen": torch.zeros(3, dtype=torch.int64)},
        {"chosen": torch.zeros(2)},
        {"chosen": torch.zeros(2, 1, dtype=torch.int64)},
        {"x": torch.zeros(0, 128).half()},
        {"words": torch.zeros(4, 32, dtype=torch.int16)},
        {"words": torch.zeros(0, 4, 32, dtype=torch.int16)},
        {"words": torch.zeros(3, 4, 31, dtype=torch.int16)},
        {"scale": torch.zeros(4, 1).half()},
        {"scale": torch.zeros(2, 4, 1).half()},
        {"zero_point": torch.zeros(3, 4, 2, dtype=torch.uint8)},
        {"bits": 9},
        {"group_size": 48},
        {"config": SMALL._replace(BLOCK_N=24)},
    ),
    ids=str,
)
def test_what_does_not_fit_is_an_error(change):
    arguments = {
        "x": torch.zeros(2, 128).half(),
        "chosen": torch.zeros(2, dtype=torch.int64),
        "words": torch.zeros(3, 4, 32, dtype=torch.int16),
        "scale": torch.zeros(3, 4, 1).half(),
        "zero_point": torch.zeros(3, 4, 1, dtype=torch.uint8),
        "bits": 4,
        "group_size": 128,
        "length": 128,
    }
    assert experts.linear(**arguments).shape == (2, 4)
    with pytest.raises(ValueError):
        experts.linear(**arguments | change)


@pytest.mark.parametrize("tokens", (1, 8, 64, 256, 4096, 100000))
def test_default_configs_are_valid(tokens):
    config = experts.default_config(tokens, 128, 768, 2048, 4, 128)
    assert weights.config_fault(config) is None
    assert min(128, tokens // 128) <= config.BLOCK_M
