"""GPTQ's streams: codes down the columns, zero points less one."""

import numpy as np
import pytest
import torch
from peer_checkpoints import Integers, gptq

from qllm_hf.errors import CheckpointError
from qllm_hf.formats.gptq import BITS, has_borrow, unpack_codes, unpack_zero_points

every_width = pytest.mark.parametrize("bits", BITS)
every_format = pytest.mark.parametrize("first", [True, False], ids=["gptq", "gptq_v2"])


def made(bits: int, least_zero: int = 0, rows: int = 64, columns: int = 96) -> Integers:
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 2**bits, (rows, columns))
    zero = rng.integers(least_zero, 2**bits, (rows, 3))
    zero[::5] = least_zero
    return Integers(codes, np.ones((rows, 3), np.float16), zero, np.arange(columns) // 32)


@every_width
@every_format
@pytest.mark.parametrize("least_zero", [0, 1], ids=["with zeros", "without"])
def test_codes_and_zero_points_come_back(bits, first, least_zero):
    found = made(bits, least_zero)
    parts = {
        name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in gptq(found, bits, first=first).items()
    }
    assert unpack_codes(parts["qweight"], bits, 96).tolist() == found.codes.tolist()
    zero = unpack_zero_points(parts["qzeros"], bits, 64, less_one=first)
    assert zero.tolist() == found.zero.tolist()
    other = unpack_zero_points(parts["qzeros"], bits, 64, less_one=not first)
    assert other.tolist() != found.zero.tolist(), "the two formats cannot be told apart"
    if first and bits != 3:
        assert has_borrow(parts["qzeros"], bits, 64) == bool((found.zero == 0).any())


def test_a_borrow_is_paid_back():
    """[0, 5, 9] less one is 0x83F: the fields are 15, 3 and 8."""
    words = torch.tensor([[0x11111950 - 0x11111111]], dtype=torch.int32)
    assert unpack_zero_points(words, 4, 8, less_one=True).flatten().tolist() == [0, 5, 9, 1, 1, 1, 1, 1]
    assert has_borrow(words, 4, 8)
    assert not has_borrow(torch.tensor([[0x77777777]], dtype=torch.int32), 4, 8)


def test_wrong_number_of_words():
    with pytest.raises(CheckpointError, match="take 12 int32 words, got 11"):
        unpack_codes(torch.zeros(11, 8, dtype=torch.int32), 4, 96)
    with pytest.raises(CheckpointError, match="take 2 int32 words"):
        unpack_zero_points(torch.zeros(3, 1, dtype=torch.int32), 4, 16, less_one=True)
