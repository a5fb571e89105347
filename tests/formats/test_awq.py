"""AWQ's words: eight channels out of order with 4 bits, in order with others."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_checkpoints import Integers, awq

from qllm_hf.errors import CheckpointError
from qllm_hf.formats.awq import unpack_columns


@settings(max_examples=50, deadline=None)
@given(bits=st.integers(2, 8), channels=st.integers(1, 6), rows=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_codes_and_zero_points_come_back(bits, channels, rows, seed):
    rng = np.random.default_rng(seed)
    codes, zero = (rng.integers(0, 2**bits, (32 * channels, count)) for count in (rows, 2))
    found = Integers(codes, np.ones(zero.shape, np.float16), zero, np.zeros(rows, np.int64))
    parts = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in awq(found, bits).items()}
    assert unpack_columns(parts["qweight"], bits, 32 * channels).tolist() == codes.tolist()
    assert unpack_columns(parts["qzeros"], bits, 32 * channels).tolist() == zero.tolist()


def test_order_of_a_word():
    """The lowest bits hold channel 0, the next ones channel 2, then 4, 6, 1, 3, 5, 7."""
    word = torch.tensor([[0x75316420]], dtype=torch.int32)
    assert unpack_columns(word, 4, 8).flatten().tolist() == list(range(8))
    assert unpack_columns(word.view(torch.int32), 8, 4).flatten().tolist() == [0x20, 0x64, 0x31, 0x75]


def test_wrong_number_of_words():
    with pytest.raises(CheckpointError, match="take 2 int32 words, got 3"):
        unpack_columns(torch.zeros(4, 3, dtype=torch.int32), 4, 16)
